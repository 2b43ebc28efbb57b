"""The linear probe: its regression against plain gradient descent, its search against the published procedure."""

import logging
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from yacs.config import CfgNode

from trainers import linear_probe
from trainers.base import PromptedCLIP
from trainers.linear_probe import GRID, LinearProbe, fit_regression, search_strength


def clouds(classes, per_class, seed, spread=1.5):
    """Overlapping clouds of points around fixed centres; features (K, 6) and labels (K,)."""
    centres = np.random.default_rng(0).normal(size=(classes, 6))
    rng = np.random.default_rng(seed)
    label = np.repeat(np.arange(classes), per_class)
    return centres[label] + spread * rng.normal(size=(len(label), 6)), label


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("strength", [0.05, 2.0])
def test_the_regression_minimises_its_loss(classes, strength):
    """C * sum of cross-entropies + |W|^2 / 2, minimised by Newton-like steps of torch's own solver."""
    feature, label = clouds(classes, 20, seed=1)
    found = fit_regression(feature, label, strength, max_iter=1000)
    assert found.converged
    x, y = torch.from_numpy(feature), torch.from_numpy(label)
    weight = torch.zeros(classes, 6, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14)
    # With two classes one row w is penalised, and the rows -w / 2 and w / 2 have half its square together.
    penalty = 1.0 if classes == 2 else 0.5

    def loss():
        solver.zero_grad()
        value = strength * F.cross_entropy(x @ weight.T + bias, y, reduction="sum") + penalty * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    expected = (x @ weight.T + bias).log_softmax(1).detach().numpy()
    logits = torch.from_numpy(feature @ found.weight.T + found.bias)
    np.testing.assert_allclose(
        logits.log_softmax(1).numpy(), expected, atol=0.02
    )  # the solver stops at a gradient of 1e-4
    assert found.weight.shape == (classes, 6)
    assert found.accuracy(feature, label) == pytest.approx(float((expected.argmax(1) == label).mean()), abs=0.02)


def test_a_solver_that_stops_early_says_so():
    assert not fit_regression(*clouds(4, 20, seed=1), strength=1e6, max_iter=1).converged


def by_the_book(accuracy, rounds):
    """The published procedure, in exponents."""
    best = max(range(len(GRID)), key=lambda i: (accuracy(GRID[i]), -i))
    left, right = math.log10(GRID[best]) - 1, math.log10(GRID[best]) + 1
    for _ in range(rounds):
        if accuracy(10**left) < accuracy(10**right):
            kept, left = right, (left + right) / 2
        else:
            kept, right = left, (left + right) / 2
    return 10**kept


@pytest.mark.parametrize("optimum", [-7.0, -2.6, 0.3, 3.9, 5.0])
def test_the_search_is_the_published_one(optimum):
    def accuracy(value):
        return -abs(math.log10(value) - optimum)

    found = search_strength(accuracy, 8)
    assert found == pytest.approx(by_the_book(accuracy, 8), rel=1e-6)
    if abs(optimum) <= 6:
        assert abs(math.log10(found) - optimum) < 1.01  # the bracket is a tenth and ten times the grid's best
    assert search_strength(lambda value: 0.5, 8) == pytest.approx(1e5)  # ties: first of the grid, lower end
    assert search_strength(lambda value: -abs(math.log10(value) - 2), 0) == 100  # without rounds, the grid's best


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
        monkeypatch.setattr(linear_probe, "build_data_loader", lambda *args, **kwargs: train)
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
    assert "no validation images" in caplog.text
    same = trainer()
    same.dm.dataset.val = same.dm.dataset.test  # as ImageNet's readers have it
    assert same.fit()["C"] == 0.316
    assert same.chosen_on() is None


def test_a_class_without_images_is_refused(trainer):
    with pytest.raises(ValueError, match=r"1 classes have no training image, such as 'yin_yang'"):
        trainer(missing=True).fit()


def test_bad_options_are_named_together(trainer):
    with pytest.raises(ValueError, match=r"C is -1.0.*ROUNDS is -1.*MAX_ITER is 0"):
        trainer("C", -1.0, "ROUNDS", -1, "MAX_ITER", 0)


def test_what_is_learned(trainer):
    learner = trainer().model.learner
    assert {name: tuple(p.shape) for name, p in learner.named_parameters()} == {"weight": (5, 32), "bias": (5,)}
    assert learner.class_bound
