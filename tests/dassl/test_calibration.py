"""Reliability, temperature scaling and scores of foreign images, against plain loops, closed forms and torchmetrics."""

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torchmetrics.functional.classification import binary_auroc, multiclass_calibration_error

from dassl.evaluation.calibration import calibration_error, fit_temperature, reliability
from dassl.evaluation.out_of_distribution import detection, scores


def labeled(rng, n=400, classes=5, sharpness=3.0):
    logits = torch.randn(n, classes, generator=rng)
    label = torch.multinomial(logits.softmax(1), 1, generator=rng)[:, 0]
    return sharpness * logits, label


def test_temperature_is_scipys_optimum_and_undoes_a_known_one(rng):
    logits, label = labeled(rng, n=20000)
    found = fit_temperature(logits, label)
    assert found == pytest.approx(3.0, rel=0.05)  # the logits are 3 times those the labels were drawn from

    def loss(t):  # a plain loop over a few, the same formula
        return -np.mean([(row / t)[y] - np.log(np.exp(row / t).sum()) for row, y in zip(few, few_labels)])

    few, few_labels = logits[:300].double().numpy(), label[:300].numpy()
    best = minimize_scalar(loss, bounds=(0.1, 20), method="bounded", options={"xatol": 1e-8}).x
    assert fit_temperature(logits[:300], label[:300]) == pytest.approx(best, rel=1e-4)


def test_temperature_of_two_values_in_closed_form():
    """Margin m, right in a share p of the items: p = sigmoid(m / T), so T = m / log(p / (1 - p))."""
    logits = torch.tensor([[2.0, 0.0]]).repeat(10, 1)
    label = torch.tensor([0] * 8 + [1] * 2)
    assert fit_temperature(logits, label) == pytest.approx(2 / math.log(4), rel=1e-4)


@pytest.mark.parametrize("shape", [(0, 3), (4, 3)])
def test_temperature_of_nothing_is_refused(shape):
    with pytest.raises(ValueError, match=r"logits \(n, C\) and labels"):
        fit_temperature(torch.zeros(shape), torch.zeros(0, dtype=torch.long))


def test_calibration_error_is_torchmetrics(rng):
    logits, label = labeled(rng)
    probability, predicted = logits.softmax(1).max(1)
    error = calibration_error(probability, predicted == label)
    other = multiclass_calibration_error(logits.softmax(1), label, num_classes=5, n_bins=15, norm="l1")
    assert error == pytest.approx(float(other), rel=1e-4)
    bins = reliability(probability, predicted == label)
    assert int(bins.count.sum()) == len(label)
    inside = (probability > 2 / 15) & (probability <= 3 / 15)
    if inside.any():
        assert float(bins.accuracy[2]) == pytest.approx(float((predicted == label)[inside].double().mean()))


def rank_auroc(inside, outside):
    wins = [(a > b) + 0.5 * (a == b) for a in inside for b in outside]
    return 100 * sum(wins) / len(wins)


def sorted_fpr95(inside, outside):
    """Lower the threshold through the sorted scores until 95 % of the inside pass."""
    for threshold in sorted({*inside, *outside}, reverse=True):
        if sum(s >= threshold for s in inside) / len(inside) >= 0.95:
            return 100 * sum(s >= threshold for s in outside) / len(outside)
    raise AssertionError


@pytest.mark.parametrize("ties", [False, True])
def test_detection_is_the_rank_statistic_and_the_sorted_threshold(ties):
    draw = np.random.default_rng(0)
    inside, outside = draw.normal(1, 1, 90), draw.normal(0, 1, 60)
    if ties:
        inside, outside = inside.round(1), outside.round(1)
    found = detection(inside, outside)
    assert found["auroc"] == pytest.approx(rank_auroc(inside, outside))
    assert found["fpr95"] == pytest.approx(sorted_fpr95(inside, outside))
    both = torch.tensor(np.concatenate([inside, outside]))
    truth = torch.tensor([1] * 90 + [0] * 60)
    normed = (both - both.min()) / (both.max() - both.min())
    assert found["auroc"] == pytest.approx(100 * float(binary_auroc(normed, truth)), abs=1e-3)
    assert detection(outside, inside)["auroc"] == pytest.approx(100 - found["auroc"])  # the sign matters
    assert detection(inside[:20] + 50, outside) == pytest.approx({"auroc": 100.0, "fpr95": 0.0})


def test_scores_by_hand(rng):
    logits = 10 * torch.randn(7, 4, generator=rng)
    found = scores(logits, scale=10.0)
    for row, mcm, energy in zip(logits.double().tolist(), found["mcm"], found["energy"]):
        parts = [math.exp(value / 10) for value in row]
        assert float(mcm) == pytest.approx(max(parts) / sum(parts))
        assert float(energy) == pytest.approx(math.log(sum(math.exp(value) for value in row)))
