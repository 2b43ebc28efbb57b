"""Skip Tuning: what learns, which classes take part, and the loss over them, with loops."""

import copy

import pytest
import torch
from plain_towers import (
    assert_same_gradients,
    cross_entropy,
    image_feature,
    logits_of,
    text_feature,
    trainer_of,
    unit,
)

from tests.tolerance import assert_close
from trainers.adapters.skip_tuning import SkipTuning, reserved

LABELS = torch.tensor([0, 3, 3])


def build(model, names, **options):
    torch.manual_seed(4)
    return trainer_of(SkipTuning, copy.deepcopy(model), names, noise=0.02, **{"START_LAYER": 2, **options})


def features(model, images, names):
    texts = [text_feature(model, f"a photo of a {name.replace('_', ' ')}.", []) for name in names]
    return [image_feature(model, image, []) for image in images], texts


def test_loss_and_gradients_over_the_classes_that_take_part(tiny_clip, names, images):
    trainer = build(tiny_clip, names, TOP_RATIO=0.6, LAMBDA=0.5)
    learner, clip = trainer.model.learner, trainer.model.clip
    learner.ranks.copy_(torch.tensor([True, True, True, False, True]))  # the fourth nearest is skipped
    _, prototypes = features(tiny_clip, [], names)  # of the weights at the start
    seen, texts = features(clip, images, names)
    logits = logits_of(clip, seen, texts)
    assert_close(trainer.model(images).logits, logits, 2e-5)
    near = []
    for c, name in enumerate(prototypes):
        near.append(2.0 if c in LABELS.tolist() else max(float((unit(f) @ unit(name)).detach()) for f in seen))
    order = sorted(range(len(names)), key=lambda c: -near[c])
    kept = sorted(set(order) - {order[3]})
    found = trainer.taking_part(trainer.model(images).image.pooled, LABELS)
    assert found.nonzero()[:, 0].tolist() == kept
    loss = cross_entropy(logits[:, kept], torch.tensor([kept.index(label) for label in LABELS.tolist()]))
    terms = trainer.losses({"img": images, "label": LABELS})
    assert list(terms) == ["ce"]
    assert not torch.allclose(terms["ce"], cross_entropy(logits, LABELS), rtol=1e-4)
    assert_same_gradients(terms["ce"], loss, learner, rtol=3e-4)


def test_what_learns(tiny_clip, names):
    learner, clip = build(tiny_clip, names).model.learner, tiny_clip
    blocks = sum(
        p.numel() for p in (*clip.transformer.resblocks[2:].parameters(), *clip.visual.blocks[2:].parameters())
    )
    assert sum(p.numel() for p in learner.parameters()) == blocks + 2 * 48 + 2 * 64 + 48 * 32 + 64 * 32
    model = build(clip, names).model
    assert {id(p) for p in model.learner.parameters()} <= {id(p) for p in model.clip.parameters()}


def test_classes_of_a_batch_always_take_part(tiny_clip, names, images):
    trainer = build(tiny_clip, names, MAX_TOP=1, LAMBDA=1e-3)
    trainer.model.learner.ranks[1:] = False
    feature = trainer.model(images).image.pooled
    assert trainer.taking_part(feature, torch.tensor([0, 3, 4])).tolist() == [True, False, False, True, True]


def test_shares_of_far_classes():
    torch.manual_seed(0)
    drawn = torch.stack([reserved(9, 4, 1.5) for _ in range(4000)]).float().mean(0)
    density = [torch.tensor(-5 * i / 4 / 1.5).exp() for i in range(5)]
    expected = torch.stack([(one - density[-1]) / (density[0] - density[-1]) for one in density])
    assert torch.equal(drawn[:4], torch.ones(4))
    torch.testing.assert_close(drawn[4:], expected, rtol=0, atol=0.03)
    assert reserved(4, 4, 0.3).all()
    assert reserved(1, 1, 0.3).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"START_LAYER": 4}, "TRAINER.SKIP.START_LAYER is 4, but the shallower tower has 4 blocks"),
        ({"TOP_RATIO": 0.0}, "TRAINER.SKIP.TOP_RATIO is 0.0, expected"),
        ({"LAMBDA": 0.0}, "TRAINER.SKIP.LAMBDA is 0.0, expected"),
    ],
)
def test_options_that_do_not_exist(tiny_clip, names, options, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_clip, names, **options)
