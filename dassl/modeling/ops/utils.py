"""Ramps, labels and averages used by trainers written for Dassl."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["create_onehot", "ema_model_update", "linear_rampup", "sharpen_prob", "shuffle_index", "sigmoid_rampup"]


def sharpen_prob(p: Tensor, temperature: float = 2) -> Tensor:
    """Probabilities (B, C) to the power of `temperature`, normalised over C."""
    p = p.pow(temperature)
    return p / p.sum(1, keepdim=True)


def shuffle_index(index: Tensor) -> Tensor:
    """The entries of `index` (n,) in random order."""
    return index[torch.randperm(len(index), device=index.device)]


def create_onehot(label: Tensor, num_classes: int) -> Tensor:
    """Labels (B,) as float32 rows (B, C) with a single one."""
    return F.one_hot(label, num_classes).float()


def linear_rampup(current: float, rampup_length: float) -> float:
    """current / rampup_length, at most 1."""
    return min(max(current / rampup_length, 0.0), 1.0) if rampup_length > 0 else 1.0


def sigmoid_rampup(current: float, rampup_length: float) -> float:
    """exp(-5 (1 - t)**2) with t = current / rampup_length in [0, 1] (Laine and Aila, 2017)."""
    return math.exp(-5.0 * (1.0 - linear_rampup(current, rampup_length)) ** 2)


@torch.no_grad()
def ema_model_update(model: nn.Module, ema_model: nn.Module, alpha: float) -> None:
    """In place: each parameter of `ema_model` becomes alpha * itself + (1 - alpha) * that of `model`."""
    for average, parameter in zip(ema_model.parameters(), model.parameters()):
        average.lerp_(parameter, 1 - alpha)
