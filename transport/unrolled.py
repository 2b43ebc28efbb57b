"""Transport with a fixed number of iterations and no decisions, for graphs that leave Python (torch.export, ONNX).

The same half steps as `transport.sinkhorn`, without its stop rule: rows, then columns, `iterations` times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from transport.sinkhorn import transport_cost


def unrolled_plan(cost: Tensor, col_mass: Tensor, reg: float, iterations: int) -> Tensor:
    """Plans of many problems with uniform row masses.

    Computed with scalings of exp(-cost / reg), so a cost may span about 80 * reg in float32; cosine distances span 2.

    Args:
        cost: (..., R, K).
        col_mass: (..., K), broadcastable; zero = padding.
        reg: weight of the entropy.
        iterations: at least 1.

    Returns:
        (..., R, K); its column sums are `col_mass`.
    """
    rows = cost.shape[-2]
    kernel = torch.exp((cost.amin((-2, -1), keepdim=True) - cost) / reg)
    mass = col_mass.unsqueeze(-1)  # (..., K, 1)
    right = (mass > 0).to(cost.dtype).expand(*cost.shape[:-2], -1, -1)
    left = 1 / (rows * (kernel @ right))  # (..., R, 1)
    for _ in range(iterations):
        right = mass / (kernel.mT @ left)
        left, last = 1 / (rows * (kernel @ right)), left
    return kernel * last * right.mT


def unrolled_distance(
    images: Tensor, texts: Tensor, mass: Tensor, reg: float, iterations: int, gradient: str = "constant"
) -> Tensor:
    """Cost of transport, `transport_cost`, of every pair of an image set and a text set with cost 1 - r s^T.

    Args:
        images: (B, M, J, E), normalised.
        texts: (C, N, L, E), normalised where they have mass.
        mass: (C, N, L).

    Returns:
        (B, C, M, N).
    """
    cost = 1 - torch.einsum("bmje,cnle->bcmnjl", images, texts)
    plan = unrolled_plan(cost, mass[:, None], reg, iterations)
    return transport_cost(cost, plan, reg, gradient)
