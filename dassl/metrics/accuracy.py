"""Accuracy of one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["compute_accuracy"]


def compute_accuracy(output: Any, target: Tensor, topk: Sequence[int] = (1,)) -> list[Tensor]:
    """Percentage of rows whose label is among the k largest scores, for each k.

    Args:
        output: scores (B, C), or a tuple or list whose first element they are.
        target: labels (B,).

    Returns:
        One tensor of shape (1,) per k, in percent.

    Raises:
        ValueError: the shapes do not match, or a k is not in 1 to C.
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    if output.dim() != 2 or target.shape != output.shape[:1] or len(target) == 0:
        raise ValueError(f"expected scores (B, C) and labels (B,), got {tuple(output.shape)} and {tuple(target.shape)}")
    if not all(1 <= k <= output.shape[1] for k in topk):
        raise ValueError(f"topk is {tuple(topk)}, expected numbers from 1 to {output.shape[1]}")
    best = output.topk(max(topk), dim=1).indices  # (B, k)
    hits = best == target[:, None]
    return [hits[:, :k].any(dim=1).to(torch.float32).mean().mul(100).view(1) for k in topk]
