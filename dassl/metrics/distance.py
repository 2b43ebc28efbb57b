"""Distances between the rows of two matrices."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

__all__ = ["compute_distance_matrix", "cosine_distance", "euclidean_squared_distance"]


def compute_distance_matrix(input1: Tensor, input2: Tensor, metric: str = "euclidean") -> Tensor:
    """Distances (m, n) between the rows of `input1` (m, d) and `input2` (n, d).

    Args:
        metric: euclidean (squared) or cosine (1 - cosine).

    Raises:
        ValueError: unknown metric, or matrices that do not fit together.
    """
    if input1.dim() != 2 or input2.dim() != 2 or input1.shape[1] != input2.shape[1]:
        raise ValueError(f"expected (m, d) and (n, d), got {tuple(input1.shape)} and {tuple(input2.shape)}")
    if metric == "euclidean":
        return euclidean_squared_distance(input1, input2)
    if metric == "cosine":
        return cosine_distance(input1, input2)
    raise ValueError(f"Unknown distance metric: {metric}, expected euclidean or cosine")


def euclidean_squared_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """Squared Euclidean distances (m, n), never negative."""
    squares = input1.pow(2).sum(1, keepdim=True) + input2.pow(2).sum(1)  # (m, 1) + (n,)
    return (squares - 2 * input1 @ input2.T).clamp_min(0)


def cosine_distance(input1: Tensor, input2: Tensor) -> Tensor:
    """1 - cosine (m, n), in [0, 2]."""
    return 1 - F.normalize(input1, dim=1) @ F.normalize(input2, dim=1).T
