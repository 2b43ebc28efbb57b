"""Prompted CLIP written plainly: one image or one sentence at a time, all 77 positions, vectors placed by slicing.

Only the blocks and norms of the model are called; of trainers/, nothing but the trainer under test is built.
"""

from types import SimpleNamespace

import torch
from yacs.config import CfgNode

import clip
from trainers.base import PromptedCLIP


def image_feature(model, image, layers):
    """Projected class token (E,) of one image (3, H, W); `layers`: visual prompts (m, d) per block, [] for none."""
    visual = model.visual
    grid = visual.conv1(image[None])[0]  # (d, side, side)
    x = torch.cat([visual.class_embedding[None], grid.flatten(1).T]) + visual.positional_embedding
    patches = len(x)
    if layers:
        x = torch.cat([x, layers[0]])
    x = visual.ln_pre(x)
    for i, block in enumerate(visual.transformer.resblocks):
        if 0 < i < len(layers):
            x = torch.cat([x[:patches], layers[i]])
        x = block(x[None])[0]
    return visual.ln_post(x[0]) @ visual.proj


def text_feature(model, sentence, layers, labels=()):
    """Projected end-of-text token (E,) of a sentence; `layers`: (n, d) per block for positions 1..n, [] for none.

    `labels`: pairs of a position and the vector (d,) that stands there instead of the word.
    """
    ids = clip.tokenize([sentence], context_length=model.context_length, vocab_size=model.vocab_size)[0]
    x = model.token_embedding.weight[ids]
    if layers:
        n = len(layers[0])
        x = torch.cat([x[:1], layers[0], x[1 + n :]])
    for place, vector in labels:
        x = torch.cat([x[:place], vector[None], x[place + 1 :]])
    x = x + model.positional_embedding
    mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
    for i, block in enumerate(model.transformer.resblocks):
        if 0 < i < len(layers) and layers[i] is not None:
            x = torch.cat([x[:1], layers[i], x[1 + n :]])
        x = block(x[None], mask)[0]
    return model.ln_final(x[ids.tolist().index(model.vocab_size - 1)]) @ model.text_projection


def unit(vector):
    return vector / vector.square().sum().sqrt()


def logits_of(model, image_features, text_features):
    """exp(logit_scale) * cosine, (B, C), one entry at a time."""
    scale = model.logit_scale.exp()
    return torch.stack([torch.stack([scale * unit(f) @ unit(w) for w in text_features]) for f in image_features])


def cross_entropy(logits, labels):
    losses = [row.exp().sum().log() - row[label] for row, label in zip(logits, labels.tolist())]
    return torch.stack(losses).mean()


def mapped(project, features, normalised=True):
    """The map of features (B, E), one hidden number at a time; with statistics of the batch."""
    first, last = project[0], project[-1]
    columns = []
    for k, row in enumerate(first.weight):
        bias = 0 if normalised else first.bias[k]
        columns.append(torch.stack([row @ feature + bias for feature in features]))
    if normalised:
        norm = project[1]
        for k, column in enumerate(columns):
            spread = (column - column.mean()).square().mean()
            columns[k] = norm.weight[k] * (column - column.mean()) / (spread + 1e-5).sqrt() + norm.bias[k]
    hidden = torch.stack([column.clamp(min=0) for column in columns], 1)
    return [last.weight @ row + last.bias for row in hidden]


def trainer_of(method, model, names, template="a photo of a {}.", others=(), dataset="Any", noise=0.2, **options):
    """A trainer of `method` around a built model, without data, optimiser or folders; its config has `options`.

    `others`: options of nodes besides the method's own, {"LAMM": {"TOKENS": "one"}}. Noise is added to what is learned,
    so that every vector matters.
    """

    class Bare(method):
        pass

    Bare.template = template
    trainer = object.__new__(Bare)
    nodes = method.defaults()
    for node, changes in {method.node: options, **dict(others)}.items():
        nodes[node].merge_from_list([item for pair in changes.items() for item in pair])
    data = {"DATASET": {"NAME": dataset, "NUM_SHOTS": 4, "DESCRIPTIONS": []}, "INPUT": {"TEMPLATE": ""}}
    trainer.cfg = CfgNode({"TRAINER": nodes, **data, "TEST": {"FINAL_MODEL": "last_step"}})
    trainer.check_cfg(trainer.cfg)
    trainer.device = torch.device("cpu")
    trainer.dm = SimpleNamespace(dataset=SimpleNamespace())
    learner = trainer.build_learner(model, names)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    trainer.model = trainer.parallel_model = PromptedCLIP(model, learner, trainer.build_score(learner))
    return trainer


def assert_same_gradients(found, expected, learner, rtol=1e-4):
    """Gradients of two scalars by every parameter of the learner are equal and none is zero."""
    names, parameters = zip(*learner.named_parameters())
    own = torch.autograd.grad(found, parameters)
    reference = torch.autograd.grad(expected, parameters)
    for name, a, b in zip(names, own, reference):
        assert float(b.abs().max()) > 0, name
        torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * float(b.abs().max()), msg=lambda m, n=name: f"{n}: {m}")
