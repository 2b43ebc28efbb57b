"""Trust in probabilities: reliability diagram, expected calibration error, temperature scaling."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["CALIBRATION_BINS", "Bins", "calibration_error", "fit_temperature", "reliability"]

CALIBRATION_BINS = 15
LOG_TEMPERATURES = (-4.0, 4.0)
"""Range in which the logarithm of the temperature is looked for."""


class Bins(NamedTuple):
    """Accuracy, mean probability (NaN if empty) and count of the predictions in each bin (i/n, (i+1)/n]."""

    accuracy: Tensor
    probability: Tensor
    count: Tensor  # type: ignore[assignment] # hides a method of tuples


def reliability(probability: Tensor, correct: Tensor, bins: int = CALIBRATION_BINS) -> Bins:
    """Bins of a reliability diagram.

    Args:
        probability: of the predicted class (n,).
        correct: (n,) bool, true where the prediction is right.
    """
    probability = probability.double()
    place = (probability * bins).ceil().long().sub(1).clamp(0, bins - 1)
    count = torch.bincount(place, minlength=bins)
    accuracy, mean = (torch.bincount(place, value.double(), bins) / count for value in (correct, probability))
    return Bins(accuracy, mean, count)


def calibration_error(probability: Tensor, correct: Tensor, bins: int = CALIBRATION_BINS) -> float:
    """Expected calibration error in [0, 1] (Guo et al., 2017, equation 3).

    The mean over items of |accuracy - mean probability| of the item's bin. Arguments as of `reliability`.
    """
    found = reliability(probability, correct, bins)
    gap = (found.accuracy - found.probability).nan_to_num().abs()
    return float((gap * found.count).sum() / len(probability))


def fit_temperature(logits: Tensor, label: Tensor) -> float:
    """Temperature under which labeled items are most probable (Guo et al., 2017, section 4.2).

    The negative log-likelihood of softmax(logits / T) is convex in 1 / T and has one minimum in T, which is looked for
    between exp(-4) and exp(4).

    Args:
        logits: (n, C).
        label: (n,).

    Raises:
        ValueError: no items, or shapes that do not match.
    """
    from scipy.optimize import minimize_scalar

    if logits.dim() != 2 or label.shape != logits.shape[:1] or not len(label):
        shapes = f"{tuple(logits.shape)} and {tuple(label.shape)}"
        raise ValueError(f"a temperature is fitted to logits (n, C) and labels (n,), n > 0, got {shapes}")
    logits = logits.detach().double().cpu()
    label = label.cpu()

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / math.exp(log_temperature), label))

    return math.exp(minimize_scalar(loss, bounds=LOG_TEMPERATURES, method="bounded", options={"xatol": 1e-6}).x)
