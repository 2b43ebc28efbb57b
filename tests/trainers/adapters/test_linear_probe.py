"""The linear probe: what it fits and searches on, and its logits."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from yacs.config import CfgNode

from trainers.adapters.linear_probe import LinearProbe
from trainers.base import PromptedCLIP
from trainers.parts import support
from trainers.parts.logistic_regression import fit_regression, search_strength


class Loader(list):
    """Batches that an evaluation loader would give."""

    def __init__(self, images, labels, size=4):
        super().__init__(
            {
                "img": images[k : k + size],
                "label": labels[k : k + size],
                "index": torch.arange(k, min(k + size, len(images))),
            }
            for k in range(0, len(images), size)
        )


@pytest.fixture
def trainer(tiny_clip, names, rng, monkeypatch):
    """A probe on 5 classes with 4 training and 3 validation images each; `build` takes options."""

    def build(*options, val=True, missing=False):
        new = object.__new__(LinearProbe)
        new.cfg = CfgNode(
            {
                "TRAINER": LinearProbe.defaults(),
                "DATALOADER": {"TEST": {"BATCH_SIZE": 4}},
                "TEST": {"FEATURE_CACHE": False},
                "SEED": 1,
            }
        )
        new.cfg.TRAINER.LINEAR_PROBE.merge_from_list(list(options))
        new.check_cfg(new.cfg)
        base = torch.randn(5, 3, 32, 32, generator=rng)
        sets = {}
        for name, count in (("train", 4), ("val", 3)):
            label = torch.arange(5).repeat_interleave(count)
            if missing:
                label[label == 3] = 2
            sets[name] = (base[label] + 0.7 * torch.randn(len(label), 3, 32, 32, generator=rng), label)
        train = Loader(*sets["train"])
        monkeypatch.setattr(support, "build_data_loader", lambda *args, **kwargs: train)
        new.val_loader = Loader(*sets["val"]) if val else None
        dataset = SimpleNamespace(train_x=[None] * 20, val=["v"], test=["t"])
        new.dm = SimpleNamespace(dataset=dataset, tfm_test=None, num_classes=5, lab2cname=dict(enumerate(names)))
        new.num_classes, new.lab2cname = 5, new.dm.lab2cname
        new.device = torch.device("cpu")
        new.precision = SimpleNamespace(autocast=lambda: torch.autocast("cpu", enabled=False))
        learner = new.build_learner(tiny_clip, names)
        new.model = PromptedCLIP(tiny_clip, learner, new.build_score(learner))
        new.sets = sets
        return new

    return build


def test_fit_and_logits(trainer, tiny_clip):
    probe = trainer()
    figures = probe.fit()
    learner, (images, label) = probe.model.learner, probe.sets["train"]
    with torch.no_grad():
        features = {name: tiny_clip.encode_image(x).pooled.double().numpy() for name, (x, _) in probe.sets.items()}
        found = probe.model(images).logits
    expected = torch.from_numpy(features["train"]).float() @ learner.weight.detach().T + learner.bias.detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    truth = {name: label.numpy() for name, (_, label) in probe.sets.items()}
    chosen = search_strength(
        lambda c: fit_regression(features["train"], truth["train"], c, 1000).accuracy(features["val"], truth["val"]), 8
    )
    assert figures["C"] == chosen
    reference = fit_regression(features["train"], truth["train"], chosen, 1000)
    np.testing.assert_allclose(learner.weight.detach().numpy(), reference.weight, rtol=1e-4, atol=1e-4)
    assert figures["val_accuracy"] == 100 * reference.accuracy(features["val"], truth["val"])
    assert probe.chosen_on() == "val"
    assert float((found.argmax(1) == label).float().mean()) * 100 == pytest.approx(figures["train_accuracy"])


def test_every_image_is_encoded_once(trainer, tiny_clip, monkeypatch):
    probe, rows = trainer(), []
    encode = type(tiny_clip).encode_image
    monkeypatch.setattr(type(tiny_clip), "encode_image", lambda self, x: rows.append(len(x)) or encode(self, x))
    probe.fit()
    assert sum(rows) == 20 + 15


def test_a_given_strength_needs_no_validation_images(trainer):
    probe = trainer("C", 0.5)
    assert probe.fit()["C"] == 0.5
    assert probe.chosen_on() is None


def test_without_validation_images_of_its_own_nothing_is_searched(trainer, caplog):
    probe = trainer(val=False)
    with caplog.at_level(logging.WARNING):
        assert probe.fit()["C"] == 0.316
    assert "no separate validation images" in caplog.text
    same = trainer()
    same.dm.dataset.val = same.dm.dataset.test  # as ImageNet's readers have it
    assert same.fit()["C"] == 0.316
    assert same.chosen_on() is None


def test_a_class_without_images_is_refused(trainer):
    with pytest.raises(ValueError, match=r"1 classes have no training image, such as 'yin_yang'"):
        trainer(missing=True).fit()


def test_bad_options_are_named_together(trainer):
    with pytest.raises(ValueError, match=r"(?s)C is -1.0.*ROUNDS is -1.*MAX_ITER is 0"):
        trainer("C", -1.0, "ROUNDS", -1, "MAX_ITER", 0)


def test_what_is_learned(trainer):
    learner = trainer().model.learner
    assert {name: tuple(p.shape) for name, p in learner.named_parameters()} == {"weight": (5, 32), "bias": (5,)}
    assert learner.class_bound
