"""Transport with a fixed number of iterations and no decisions, for graphs that leave Python (torch.export, ONNX).

The same half steps as `transport.sinkhorn`, without its stop rule: rows, then columns, `iterations` times.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    size = cost.shape
    rows, columns = size[-2:]
    kernel = torch.exp((cost.amin((-2, -1), keepdim=True) - cost) / reg).reshape(-1, rows, columns)
    mass = col_mass.expand(*size[:-2], columns).reshape(-1, columns, 1)
    across = kernel.mT.contiguous()
    right = (mass > 0).to(cost.dtype)
    last = left = 1 / (rows * torch.bmm(kernel, right))
    for _ in range(iterations):
        right, last = mass / torch.bmm(across, left), left
        left = 1 / (rows * torch.bmm(kernel, right))
    return (kernel * last * right.mT).reshape(size)
