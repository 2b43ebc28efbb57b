"""CLIP-LoRA: logits and gradients against plain towers whose weights have the products added, and the options."""

import copy

import pytest
import torch
from plain_towers import assert_same_gradients, cross_entropy, logits_of, trainer_of, unit
from torch.nn import functional as F

import clip
from clip.adapters import LowRank
from trainers.adapters.clip_lora import CLIPLoRA

LABELS = torch.tensor([0, 3, 1])


def build(model, names, **options):
    torch.manual_seed(1)
    trainer = trainer_of(CLIPLoRA, copy.deepcopy(model), names, noise=0.3, **options)
    trainer.model.learner.eval()
    return trainer


def plain_block(block, x, products, mask):
    """One block on one sequence (L, d), head by head; `products`: what is added to the weights, by projection."""
    width, heads = x.shape[1], block.attn.heads
    h = block.ln_1(x)
    rows = zip("qkv", block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3))
    q, k, v = (h @ (weight + products.get(name, 0)).T + bias for name, weight, bias in rows)
    seen = []
    for part in torch.arange(width).chunk(heads):
        scores = q[:, part] @ k[:, part].T / len(part) ** 0.5 + mask
        seen.append((scores.exp() / scores.exp().sum(1, keepdim=True)) @ v[:, part])
    out = block.attn.out_proj
    x = x + torch.cat(seen, 1) @ (out.weight + products.get("out", 0)).T + out.bias
    first, last = block.mlp.c_fc, block.mlp.c_proj
    h = block.ln_2(x) @ (first.weight + products.get("fc1", 0)).T + first.bias
    return x + (h * torch.sigmoid(1.702 * h)) @ (last.weight + products.get("fc2", 0)).T + last.bias


def products_of(trainer, scale):
    found = {}
    for name, adapter in trainer.model.learner.adapters.items():
        tower, block, part = name.split("-")
        found.setdefault((tower, int(block)), {})[part] = scale * adapter.up.weight @ adapter.down.weight
    return found


def reference_logits(model, images, names, products):
    visual, features, texts = model.visual, [], []
    for image in images:
        grid = visual.conv1(image[None])[0].flatten(1).T
        x = visual.ln_pre(torch.cat([visual.class_embedding[None], grid]) + visual.positional_embedding)
        for i, block in enumerate(visual.blocks):
            x = plain_block(block, x, products.get(("vision", i), {}), 0)
        features.append(visual.ln_post(x[0]) @ visual.proj)
    for name in names:
        ids = clip.tokenize(f"a photo of a {name.replace('_', ' ')}.", vocab_size=model.vocab_size)[0]
        x = model.token_embedding.weight[ids] + model.positional_embedding
        mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
        for i, block in enumerate(model.transformer.resblocks):
            x = plain_block(block, x, products.get(("text", i), {}), mask)
        texts.append(model.ln_final(x[ids.argmax()]) @ model.text_projection)
    return logits_of(model, features, texts)


CASES = {
    "defaults": ({}, 24, 2**-0.5),
    "LoRA's factor": ({"SCALE": "rank", "RANK": 4, "ALPHA": 3.0}, 24, 0.75),
    "text, last third": ({"TOWERS": ("text",), "POSITION": "up"}, 3, 2**-0.5),
    "vision, every layer": ({"TOWERS": ("vision",), "PARAMS": ("q", "k", "v", "out", "fc1", "fc2")}, 24, 2**-0.5),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients(tiny_clip, names, images, case):
    options, count, scale = CASES[case]
    trainer = build(tiny_clip, names, **options)
    assert len(trainer.model.learner.adapters) == count
    expected = reference_logits(tiny_clip, images, names, products_of(trainer, scale))
    found = trainer.model(images).logits
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.detach().abs().max()))
    plain = reference_logits(tiny_clip, images, names, {})
    assert not torch.allclose(found, plain, atol=0.05)  # the adapters matter
    terms = trainer.losses({"img": images, "label": LABELS})
    assert list(terms) == ["ce"]
    assert_same_gradients(terms["ce"], cross_entropy(expected, LABELS), trainer.model.learner)


def test_dropout_is_on_the_input_of_the_product_in_training(rng):
    linear = torch.nn.Linear(12, 8)
    adapter = LowRank(linear, 2, 0.7, 0.25)
    torch.nn.init.normal_(adapter.up.weight)
    x = torch.randn(5, 12, generator=rng)
    torch.manual_seed(2)
    found = adapter.train()(x, linear(x))
    torch.manual_seed(2)
    dropped = F.dropout(x, 0.25)
    assert bool((dropped == 0).any())
    expected = linear(x) + 0.7 * dropped @ adapter.down.weight.T @ adapter.up.weight.T
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_it_starts_as_zero_shot_clip(tiny_clip, names, images):
    torch.manual_seed(1)
    trainer = trainer_of(CLIPLoRA, copy.deepcopy(tiny_clip), names, noise=0.0)
    found = trainer.model(images)
    expected = tiny_clip.encode_image(images).pooled
    torch.testing.assert_close(unit(found.image.pooled[0]), unit(expected[0]), rtol=1e-5, atol=1e-5)


def test_number_of_parameters(wide_clip):
    learner = trainer_of(CLIPLoRA, copy.deepcopy(wide_clip), ["cat"]).model.learner
    assert sum(p.numel() for p in learner.parameters()) == 12 * 3 * 2 * 2 * 512 + 3 * 2 * 2 * 64


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"RANK": 0}, "TRAINER.CLIP_LORA.RANK is 0, expected 1 or more"),
        ({"RANK": 49}, "the rank of an adapter is 49, expected 1 to 48"),
        ({"SCALE": "none"}, "TRAINER.CLIP_LORA.SCALE is 'none', expected one of sqrt, rank"),
        ({"TOWERS": ("image",)}, r"TRAINER\.CLIP_LORA\.TOWERS is \('image',\), expected some of text, vision"),
        ({"PARAMS": ("o",)}, "expected some of q, k, v, out, fc1, fc2"),
        ({"POSITION": "top"}, "adapters on the blocks 'top', expected numbers or one of all, bottom"),
        ({"DROPOUT": 1.5}, "DROPOUT is 1.5, expected a number from 0 below 1"),
    ],
)
def test_options_that_do_not_exist(tiny_clip, names, options, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_clip, names, **options)
