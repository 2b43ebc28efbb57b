"""TextRefiner: logits, loss, gradients and memory against plain loops over tokens, classes and entries."""

import copy
import math

import pytest
import torch
from plain_towers import assert_same_gradients, cross_entropy, mapped, text_feature, trainer_of, unit

import clip
from tests.tolerance import assert_close
from trainers.adapters.text_refiner import TextRefiner

LABELS = torch.tensor([0, 3, 1])


def build(model, names, **options):
    torch.manual_seed(1)
    return trainer_of(TextRefiner, copy.deepcopy(model), names, **{"MEMORY_SIZE": 6, "TOP": 3, **options})


def tokens_of(model, image, top):
    """Projected tokens (1 + P, E) of one image and the numbers of those that the class token attends to most."""
    visual = model.visual
    x = torch.cat([visual.class_embedding[None], visual.conv1(image[None])[0].flatten(1).T])
    x = visual.ln_pre(x + visual.positional_embedding)
    for block in visual.blocks[:-1]:
        x = block(x[None])[0]
    last = visual.blocks[-1]
    q, k, _ = (last.ln_1(x) @ last.attn.in_proj_weight.T + last.attn.in_proj_bias).chunk(3, dim=1)
    seen, size = torch.zeros(len(x)), q.shape[1] // last.attn.heads
    for head in range(last.attn.heads):
        part = slice(head * size, (head + 1) * size)
        weights = torch.stack([(q[0, part] @ key[part] / math.sqrt(size)).exp() for key in k])
        seen += weights / weights.sum() / last.attn.heads
    x = last(x[None])[0]
    order = sorted(range(1, len(x)), key=lambda place: -float(seen[place]))
    return [visual.ln_post(row) @ visual.proj for row in x], order[:top]


def read(learner, text):
    """Mean of the entries of the memory, weighted by the softmax of their products with one class (E,)."""
    weights = torch.stack([(text @ entry).exp() for entry in learner.memory])
    return sum(weight * entry for weight, entry in zip(weights / weights.sum(), learner.memory))


def reference(model, learner, images, names, alpha, top):
    """Logits, logits of chosen local features (image-major), class features, refined ones, and local features."""
    scale, each = model.logit_scale.exp(), [tokens_of(model, image, top) for image in images]
    rows, count = mapped(learner.align, [row for tokens, _ in each for row in tokens]), len(each[0][0])
    texts = [unit(text_feature(model, f"a photo of a {name.replace('_', ' ')}.", [learner.ctx])) for name in names]
    refined = [text + alpha * learner.extract.weight @ torch.cat([text, read(learner, text)]) for text in texts]
    logits = torch.stack([torch.stack([scale * unit(tokens[0]) @ one for one in refined]) for tokens, _ in each])
    chosen = []
    for b, (_, places) in enumerate(each):
        own = rows[b * count : (b + 1) * count]
        chosen += [own[0], *(own[place] for place in places), sum(own) / count]
    local = torch.stack([torch.stack([scale * feature @ text for text in texts]) for feature in chosen])
    return logits, local, texts, refined, rows


def terms_of(found, weights=(0.02, 20)):
    logits, local, texts, refined, _ = found
    labels = LABELS.repeat_interleave(len(local) // len(LABELS))
    distance = torch.stack([(unit(one) - text).abs().mean() for one, text in zip(refined, texts)]).mean()
    return {
        "ce": cross_entropy(logits, LABELS),
        "semantic": weights[0] * cross_entropy(local.double(), labels).float(),  # far above 1 with noise
        "regular": weights[1] * distance,
    }


@pytest.mark.parametrize(("alpha", "top"), [(0.2, 3), (0.5, 16)])
def test_logits_losses_and_gradients(tiny_clip, names, images, alpha, top):
    trainer = build(tiny_clip, names, ALPHA=alpha, TOP=top)
    learner = trainer.model.learner
    found = reference(tiny_clip, learner, images, names, alpha, top)
    assert_close(trainer.model(images).logits, found[0])
    terms, expected = trainer.losses({"img": images, "label": LABELS}), terms_of(found)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(terms[name], value, 1e-4)
    assert_same_gradients(sum(terms.values()), sum(expected.values()), learner, rtol=1e-3)
    if top < 16:  # another number of patches, and refined features of length 1, would be something else
        wrong = terms_of(reference(tiny_clip, learner, images, names, alpha, top + 1))
        one, other = terms["semantic"].item(), wrong["semantic"].item()
        assert abs(one - other) > 1e-3 * one
        assert min(abs(feature.norm().item() - 1) for feature in found[3]) > 0.01


def test_the_memory_follows_the_local_features(tiny_clip, names, images):
    trainer = build(tiny_clip, names, MOMENTUM=0.7)
    learner, memory = trainer.model.learner, trainer.model.learner.memory.clone()
    for shift in (0, 1):  # two parts of one step
        batch = {"img": images.roll(shift, dims=0) + shift, "label": LABELS}
        trainer.losses(batch)
    assert torch.equal(learner.memory, memory)  # a step reads what earlier steps wrote
    rows = [unit(row) for part in trainer.locals for image in part for row in image]
    assert len(rows) == 2 * 3 * 17
    expected, moved = [], 0
    for j, entry in enumerate(memory):
        most, change = max(float(row @ entry) for row in rows), torch.zeros_like(entry)
        for row in rows:
            if max(range(6), key=lambda k, r=row: float(r @ memory[k])) == j:
                change, moved = change + math.exp(float(row @ entry) - most) * row, moved + 1
        expected.append(unit(0.7 * entry + 0.3 * change))
    assert moved == len(rows)
    with torch.no_grad():
        trainer.after_step()
    assert_close(learner.memory, torch.stack(expected))
    assert not torch.allclose(learner.memory, memory, atol=0.01)
    assert trainer.locals == []


def test_an_evaluation_reads_the_memory_alone(tiny_clip, names, images):
    trainer = build(tiny_clip, names)
    learner = trainer.model.learner
    expected = reference(tiny_clip, learner, images, names, 0.2, 3)[0]
    trainer.model.eval()
    learner.align = None
    assert_close(trainer.model(images).logits, expected)
    assert torch.equal(trainer.model.encode_image(images).tokens, tiny_clip.encode_image(images).tokens)
    learner.memory.copy_(learner.memory.flip(1))
    assert not torch.allclose(trainer.model(images).logits, expected, atol=0.01)


def test_number_of_parameters(wide_clip):
    learner = build(wide_clip, ["cat"]).model.learner
    assert sum(p.numel() for p in learner.parameters()) == 4 * 512 + 2 * 512 * 512 + 3 * 512 + 2 * 512 * 512
    assert {"memory"} == set(learner.state_dict()) - {name for name, _ in learner.named_parameters()} - {
        f"align.1.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"MEMORY_SIZE": 0}, "MEMORY_SIZE is 0, expected 1 or more"),
        ({"MOMENTUM": 1.5}, "MOMENTUM is 1.5, expected a number from 0 to 1"),
        ({"ALPHA": -1.0}, "ALPHA is -1.0, expected"),
        ({"TOP": 17}, "TOP is 17, but an image has 16 patches"),
    ],
)
def test_options_that_do_not_exist(tiny_clip, names, images, options, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_clip, names, **options).losses({"img": images, "label": LABELS})


def test_a_resnet_has_no_patches(names):
    resnet = clip.CLIP(32, 64, (1, 1, 1, 1), 16, None, 77, 2048, 48, 2, 4).requires_grad_(False)
    with pytest.raises(ValueError, match="the image tower is a ModifiedResNet"):
        build(resnet, names)
