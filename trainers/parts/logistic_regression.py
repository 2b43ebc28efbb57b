"""Logistic regression on features: the L-BFGS fit and the search for the strength of its regularisation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

GRID = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)  # strengths that the search starts with


class Regression(NamedTuple):
    """A fitted classifier: weight (C, E), bias (C,), and whether the solver converged."""

    weight: np.ndarray
    bias: np.ndarray
    converged: bool

    def accuracy(self, feature: np.ndarray, label: np.ndarray) -> float:
        """Share of features (K, E) that the classifier puts into their class."""
        return float(((feature @ self.weight.T + self.bias).argmax(axis=1) == label).mean())


def fit_regression(feature: np.ndarray, label: np.ndarray, strength: float, max_iter: int) -> Regression:
    """L2-regularised multinomial logistic regression with L-BFGS; `strength` is C, labels are 0 ... C - 1."""
    from sklearn.exceptions import ConvergenceWarning  # its import takes a second, and no other method needs it
    from sklearn.linear_model import LogisticRegression

    solver = LogisticRegression(C=strength, max_iter=max_iter)
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        solver.fit(feature, label)
    weight, bias = solver.coef_, solver.intercept_
    if len(weight) == 1:  # two classes share one row; the same probabilities with a row for each
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return Regression(weight, bias, not any(issubclass(w.category, ConvergenceWarning) for w in raised))


def search_strength(accuracy: Callable[[float], float], rounds: int) -> float:
    """Inverse regularisation C with the best accuracy (released code of CoOp, lpclip).

    The first best of GRID is bracketed by a tenth and ten times itself. Every round keeps the better end, the lower one
    of two equal, and moves the other to their geometric mean; the result is the end that the last round keeps.
    """
    figures = [accuracy(value) for value in GRID]
    peak = GRID[figures.index(max(figures))]
    low, high, kept = 0.1 * peak, 10 * peak, peak
    for _ in range(rounds):
        middle = (low * high) ** 0.5
        if accuracy(low) < accuracy(high):
            low, kept = middle, high
        else:
            high, kept = middle, low
    return kept
