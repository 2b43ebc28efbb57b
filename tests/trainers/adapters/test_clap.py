"""CLAP: multipliers, loss and every step of the fit against loops over images and classes."""

import pytest
import torch
from support_sets import support_trainer, unit

import clip
from dassl.config import get_cfg_default
from tests.tolerance import assert_close
from trainers.adapters.clap import CLAP

SHOTS, VIEWS = 3, 2
PLAIN = {
    "NAME": "sgd",
    "LR": 0.05,
    "MAX_EPOCH": 3,
    "WEIGHT_DECAY": 0.0,
    "LR_SCHEDULER": "single_step",
    "STEPSIZE": (100,),
}


@pytest.fixture
def build(tiny_clip, names, monkeypatch):
    def make(optim=PLAIN, **options):
        options = {"VIEWS": VIEWS, **options}
        return support_trainer(CLAP, tiny_clip, names, monkeypatch, SHOTS, VIEWS, optim=optim, **options)

    return make


def raw_text(model, name):
    ids = clip.tokenize([f"a photo of a {name.replace('_', ' ')}."], vocab_size=model.vocab_size)
    return model.encode_text(ids).pooled[0]


def plain_multipliers(model, features, labels, text):
    """Mean softmax probability of the own class, image by image."""
    found = [[] for _ in text]
    for f, y in zip(features, labels):
        values = torch.stack([model.logit_scale.exp() * unit(f) @ unit(t) for t in text])
        found[y].append(float(values.exp()[y] / values.exp().sum()))
    return [sum(values) / len(values) for values in found]


def plain_fit(model, trainer, names, kind="class", epochs=3):
    """Prototypes after SGD with momentum on batches of 4, 3 of an epoch, of all views in a random order."""
    images = torch.cat([view for view, _ in trainer.sets["train"]])
    labels = torch.cat([label for _, label in trainer.sets["train"]]).tolist()
    features = [model.encode_image(image[None]).pooled[0] for image in images]
    text = [raw_text(model, name) for name in names]
    weights = plain_multipliers(model, features, labels, text)
    if kind != "class":
        weights = [sum(weights) / len(weights) if kind == "mean" else 0.0] * len(weights)
    w, speed = torch.stack(text).clone().requires_grad_(), torch.zeros(len(text), len(text[0]))
    order = torch.Generator().manual_seed(1)
    for _ in range(epochs):
        rows = torch.randperm(len(labels), generator=order).tolist()
        for start in (0, 4, 8):
            losses = []
            for k in rows[start : start + 4]:
                values = torch.stack([model.logit_scale.exp() * unit(features[k]) @ unit(row) for row in w])
                losses.append(values.exp().sum().log() - values[labels[k]])
            held = [weight * (row - t).square().sum() for weight, row, t in zip(weights, w, text)]
            (gradient,) = torch.autograd.grad(sum(losses) / 4 + sum(held) / len(text), w)
            speed = 0.9 * speed + gradient
            w = (w - 0.05 * speed).detach().requires_grad_()
    return w.detach(), weights, float(sum(losses) / 4), float(sum(held) / len(text))


@pytest.mark.parametrize("kind", ["class", "mean", "none"])
def test_fit(build, tiny_clip, names, kind):
    trainer = build(CONSTRAINT=kind)
    figures = trainer.fit()
    assert trainer.loader_calls == [(5 * SHOTS * VIEWS, "augment", False, 1)]
    expected, weights, ce, prior = plain_fit(tiny_clip, trainer, names, kind)
    assert_close(trainer.model.learner.prototypes.detach(), expected, 1e-4)
    mean = sum(weights) / 5
    assert figures == pytest.approx({"ce": ce, "prior": prior, "multiplier": mean}, rel=1e-3, abs=1e-6)
    other = plain_fit(tiny_clip, trainer, names, "none" if kind != "none" else "class")[0]
    assert not torch.allclose(trainer.model.learner.prototypes, other, atol=1e-3)  # what holds them matters


def test_multipliers_differ_by_class(build, tiny_clip, names):
    trainer = build()
    images, labels = trainer.sets["train"][0]
    features = tiny_clip.encode_image(images).pooled
    text = [raw_text(tiny_clip, name) for name in names]
    found = trainer.multipliers(features, labels)
    assert_close(found, torch.tensor(plain_multipliers(tiny_clip, features, labels.tolist(), text)))
    assert float(found.std()) > 0.01


def test_it_starts_as_zero_shot_clip_and_logits_are_cosines(build, tiny_clip, names, images):
    learner = build().model.learner
    assert_close(learner.prototypes.detach(), torch.stack([raw_text(tiny_clip, name) for name in names]))
    assert list(learner.state_dict()) == ["prototypes"]
    trainer = build()
    trainer.fit()
    found = trainer.model(images).logits.detach()
    for row, image in zip(found, images):
        f = unit(tiny_clip.encode_image(image[None]).pooled[0])
        values = [tiny_clip.logit_scale.exp() * f @ unit(w) for w in trainer.model.learner.prototypes.detach()]
        assert_close(row, torch.stack(values))


def test_schedules_by_epoch_and_by_step(build):
    assert get_cfg_default().OPTIM.LR_SCHEDULER == "single_step"
    steady = build().model.learner
    for schedule in ("cosine", "batch_cosine"):
        trainer = build(optim={**PLAIN, "LR_SCHEDULER": schedule})
        trainer.fit()
        assert bool(torch.isfinite(trainer.model.learner.prototypes).all())
        assert not torch.equal(trainer.model.learner.prototypes, steady.prototypes)


def test_sentences_about_the_classes(build, tiny_clip, names, tmp_path):
    import json

    file = tmp_path / "own.json"
    file.write_text(json.dumps({name: [f"a photo of a {name.replace('_', ' ')}."] for name in names}))
    learner = build(TEMPLATES="descriptions", others={"DESCRIPTIONS": [str(file)]}).model.learner
    assert_close(learner.start, torch.stack([raw_text(tiny_clip, name) for name in names]))


def test_bad_options_and_data(build):
    with pytest.raises(ValueError, match=r"(?s)CONSTRAINT is 'l2', expected one of class, mean, none.*VIEWS is 0"):
        build(CONSTRAINT="l2", VIEWS=0)
    trainer = build()
    for _, labels in trainer.sets["train"]:
        labels.fill_(2)
    with pytest.raises(ValueError, match="4 classes have no training image, such as 'cat': CLAP needs some"):
        trainer.fit()
