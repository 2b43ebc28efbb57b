"""MaPLe against plain forwards of one image and one sentence at a time."""

import pytest
import torch
from plain_towers import (
    assert_same_gradients,
    cross_entropy,
    image_feature,
    logits_of,
    text_feature,
    trainer_of,
)

import clip
from trainers.maple import MaPLe
from trainers.parts.modes import MultiModeLearner
from trainers.parts.prompts import init_context

LABELS = torch.tensor([0, 3, 1])


def build(model, names, **options):
    torch.manual_seed(1)
    return trainer_of(MaPLe, model, names, **{"PROMPT_DEPTH": 3, **options})


def reference_logits(model, learner, images, names, words):
    texts = [learner.ctx[0], *(layer[0] for layer in learner.deep)]
    visual = []
    for text, projection in zip(texts, learner.projections):  # one prompt vector at a time
        visual.append(torch.stack([projection.weight @ vector + projection.bias for vector in text]))
    text_features = [text_feature(model, f"{words} {name.replace('_', ' ')}.", texts) for name in names]
    return logits_of(model, [image_feature(model, image, visual) for image in images], text_features)


CASES = {
    "released, 2": ({}, "a a of a"),
    "rest dropped": ({"KEEP_REST": False}, "a a"),
    "4 words": ({"N_CTX": 4}, "a a a a"),
    "random context": ({"N_CTX": 5, "CTX_INIT": ""}, "a a a a a"),
    "input only": ({"PROMPT_DEPTH": 1}, "a a of a"),
    "all blocks": ({"PROMPT_DEPTH": 4}, "a a of a"),
}


@pytest.mark.parametrize("case", CASES)
def test_logits_loss_and_gradients(tiny_clip, names, images, case):
    options, words = CASES[case]
    trainer = build(tiny_clip, names, **options)
    expected = reference_logits(tiny_clip, trainer.model.learner, images, names, words)
    terms = trainer.losses({"img": images, "label": LABELS})
    assert set(terms) == {"ce"}
    torch.testing.assert_close(trainer.model(images).logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(terms["ce"], cross_entropy(expected, LABELS), rtol=1e-4, atol=0)
    assert_same_gradients(terms["ce"], cross_entropy(expected, LABELS), trainer.model.learner)


def test_both_towers_send_gradients_to_the_textual_prompts(tiny_clip, names, images):
    model = build(tiny_clip, names).model
    output = model(images)
    for feature in (output.image.pooled, output.text.pooled):
        gradients = torch.autograd.grad(feature.sum(), [model.learner.ctx, *model.learner.deep], retain_graph=True)
        assert all(float(gradient.abs().max()) > 0 for gradient in gradients)


def test_shared_start_copies_the_deep_maps_only(tiny_clip, names):
    def first_values(shared):
        torch.manual_seed(0)
        options = MaPLe.defaults().MAPLE
        options.merge_from_list(["SHARED_START", shared, "PROMPT_DEPTH", 4])
        trainer = object.__new__(MaPLe)
        trainer.cfg = type("Cfg", (), {"TRAINER": {"MAPLE": options}})
        return [projection.weight for projection in trainer.build_learner(tiny_clip, names).projections]

    first, *deep = first_values(True)
    assert torch.equal(deep[0], deep[1])
    assert torch.equal(deep[0], deep[2])
    assert not torch.equal(first, deep[0])
    first, *deep = first_values(False)
    assert not torch.equal(deep[0], deep[1])


def test_shapes_start_and_counts(tiny_clip, names):
    learner = MultiModeLearner(tiny_clip, names, n_ctx=2, depth=3, init="a photo of a")
    assert {name: tuple(value.shape) for name, value in learner.state_dict().items()} == {
        "ctx": (1, 2, 48),
        "deep.0": (1, 2, 48),
        "deep.1": (1, 2, 48),
        **{f"projections.{k}.weight": (64, 48) for k in range(3)},
        **{f"projections.{k}.bias": (64,) for k in range(3)},
    }
    torch.testing.assert_close(learner.ctx[0], init_context(tiny_clip, "a photo", 2), rtol=0, atol=0)
    assert 0.01 < float(torch.cat(list(learner.deep)).detach().std()) < 0.03

    with torch.device("meta"):
        base = clip.CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    for depth, expected in ((9, 3_555_072), (3, 1_185_024)):
        learner = MultiModeLearner(base, ["cat"], n_ctx=2, depth=depth)
        assert sum(p.numel() for p in learner.parameters()) == expected


def test_bad_options(tiny_clip, names):
    with pytest.raises(ValueError, match=r"MAPLE.N_CTX is 0, expected 1 or more\n +TRAINER.MAPLE.PROMPT_DEPTH is 0"):
        build(tiny_clip, names, N_CTX=0, PROMPT_DEPTH=0)
    with pytest.raises(ValueError, match=r"MAPLE.PREC is 'fp8'"):
        build(tiny_clip, names, PREC="fp8")
    with pytest.raises(ValueError, match="PROMPT_DEPTH is 5, but the shallower tower has 4 blocks"):
        build(tiny_clip, names, PROMPT_DEPTH=5)
    with pytest.raises(ValueError, match=r"N_CTX 5 cuts through a word|N_CTX is 5"):
        build(tiny_clip, names, N_CTX=5)
    resnet = clip.CLIP(32, 32, (1, 1, 1, 1), 8, None, 77, 2048, 48, 2, 3)
    with pytest.raises(ValueError, match="vision transformer, but the image tower is a ModifiedResNet"):
        build(resnet, names)
