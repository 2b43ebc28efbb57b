"""Logistic regression against plain gradient descent, its search against the published procedure."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trainers.parts.logistic_regression import GRID, fit_regression, search_strength


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
