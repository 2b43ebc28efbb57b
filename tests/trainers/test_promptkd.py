"""PromptKD against plain forwards of one image at a time, and its teachers."""

import copy
from types import SimpleNamespace

import pytest
import torch
from plain_towers import assert_same_gradients, image_feature, logits_of, mapped, text_feature, trainer_of

import clip
from clip import CLIP
from tests.tolerance import assert_close
from trainers.parts.modes import MultiModeLearner, saved_prompts
from trainers.promptkd import PromptKD

LABELS = torch.tensor([0, 3, 1])


def larger():
    """A teacher of another width for images of the same size."""
    torch.manual_seed(5)
    return CLIP(40, 32, 3, 64, 8, 77, 2048, 48, 2, 4, vision_heads=2).eval().requires_grad_(False)


@pytest.fixture
def teacher(monkeypatch):
    model, load = larger(), clip.load
    monkeypatch.setattr(clip, "load", lambda name, device: (copy.deepcopy(model), None) if name == "L" else load(name))
    return model


def build(model, names, **options):
    torch.manual_seed(1)

    class Method(PromptKD):
        precision = SimpleNamespace(dtype=torch.float32)

    Method.defaults = staticmethod(PromptKD.defaults)
    return trainer_of(Method, copy.deepcopy(model), names, **{"PROMPT_DEPTH": 3, **options})


def divergence(found, known, temperature):
    """Mean over images and classes of p (log p - log q), p of the teacher."""
    total, (count, classes) = 0, found.shape
    for row, target in zip(found / temperature, known / temperature):
        q, p = row.exp() / row.exp().sum(), target.exp() / target.exp().sum()
        total = total + sum(p[c] * (p[c].log() - q[c].log()) for c in range(classes))
    return total / (count * classes)


@pytest.mark.parametrize("normalised", [True, False])
def test_logits_loss_and_gradients(tiny_clip, names, images, teacher, normalised):
    own = {"TEACHER": "L", "TEMPERATURE": 2.0, "KD_WEIGHT": 10.0, "BATCH_NORM": normalised, "N_CTX": 2}
    trainer = build(tiny_clip, names, **own)
    learner = trainer.model.learner
    texts = [text_feature(teacher, f"a photo of a {name.replace('_', ' ')}.", []) for name in names]
    known = logits_of(teacher, [image_feature(teacher, image, []) for image in images], texts)
    features = [image_feature(tiny_clip, image, [layer[0] for layer in learner.vision]) for image in images]
    expected = logits_of(tiny_clip, mapped(learner.project, features, normalised), texts)
    assert_close(trainer.model(images).logits, expected, 1e-4 if normalised else 2e-5)  # a batch of 3 cancels
    terms = trainer.losses({"img": images, "label": LABELS})
    assert list(terms) == ["kd"]
    loss = 10 * 4 * divergence(expected, known, 2.0)
    assert_close(terms["kd"], loss, 2e-4)
    other = trainer.losses({"img": images, "label": (LABELS + 1) % 5})["kd"]
    assert torch.equal(other, terms["kd"])  # labels are not used
    assert_same_gradients(terms["kd"], loss, learner, rtol=1e-3 if normalised else 2e-4)


def test_an_evaluation_uses_the_running_statistics(tiny_clip, names, images):
    trainer = build(tiny_clip, names)
    alone, whole = trainer.model.eval()(images[:1]).logits, trainer.model(images).logits
    assert_close(alone, whole[:1])


def test_prompts_of_a_run_teach(tiny_clip, names, images, tmp_path):
    torch.manual_seed(3)
    shape = {"n_ctx": 2, "depth": 3, "init": "a photo of a", "coupled": False, "vision_n_ctx": 3, "vision_depth": 2}
    saved = MultiModeLearner(tiny_clip, ["x", "y"], **shape)
    config = "TRAINER: {NAME: IVLP, IVLP: {CTX_INIT: a photo of a, KEEP_REST: true}}"
    path = tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": saved.state_dict(), "epoch": 1, "config": config}, path)
    trainer = build(tiny_clip, names, TEACHER_PROMPTS=str(path))
    texts = [saved.ctx[0], *(layer[0] for layer in saved.deep)]
    words = [text_feature(tiny_clip, f"a a of a {name.replace('_', ' ')}.", texts) for name in names]
    seen = [image_feature(tiny_clip, image, [layer[0] for layer in saved.vision]) for image in images]
    found = trainer.teacher(images, trainer.teacher_text).logits
    assert_close(found, logits_of(tiny_clip, seen, words), 2e-5)


def test_number_of_parameters(wide_clip):
    learner = build(wide_clip, ["cat"], PROMPT_DEPTH=1).model.learner
    assert sum(p.numel() for p in learner.parameters()) == 4 * 64 + 2 * 512 * 512 + 3 * 512


def test_teachers_that_do_not_fit(tiny_clip, names, monkeypatch, tmp_path):
    path = tmp_path / "model.pth.tar-1"
    weights = MultiModeLearner(larger(), ["x"], n_ctx=2, depth=2).state_dict()
    torch.save({"state_dict": weights, "epoch": 1}, path)
    with pytest.raises(ValueError, match="holds no independent prompts of both towers"):
        saved_prompts(tiny_clip, names, str(path))
    weights = MultiModeLearner(tiny_clip, ["x"], n_ctx=2, depth=2, coupled=False).state_dict()
    weights["ctx"] = weights["ctx"][..., :40]
    torch.save({"state_dict": weights, "epoch": 1}, path)
    with pytest.raises(ValueError, match="does not fit this model"):
        saved_prompts(tiny_clip, names, str(path))
    other = CLIP(40, 64, 1, 64, 8, 77, 2048, 48, 2, 1, vision_heads=2)
    monkeypatch.setattr(clip, "load", lambda *_: (other, None))
    with pytest.raises(ValueError, match="TEACHER takes images of 64 pixels, the student of 32"):
        build(tiny_clip, names, TEACHER="L")
    with pytest.raises(ValueError, match="depth 5 in a tower of 4 blocks"):
        build(tiny_clip, names, PROMPT_DEPTH=5)
