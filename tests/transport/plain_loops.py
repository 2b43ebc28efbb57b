"""Plain loops, with a Sinkhorn of their own: the independent reference of transport's tests and of the benchmarks.

Written from the formulas, with one Sinkhorn call per (image, class) pair as in the authors' released code, and slow.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sinkhorn_loop(
    cost: Tensor, rows: Tensor, cols: Tensor, reg: float, max_iter: int, threshold: float, stop: str
) -> Tensor:
    """Plans (P, R, K) of P problems that stop together; rows (P, R), cols (P, K).

    `scaling_change`: when the mean of |r - r_previous| over all rows of all problems is below the threshold.
    `marginal`: when no problem's row sums are off by more than the threshold in total.
    """
    with torch.no_grad():
        kernel = torch.exp(-cost / reg)
        r, c = torch.ones_like(rows), (cols > 0).to(cols.dtype)
        for _ in range(max_iter):
            before = r
            r = rows / torch.einsum("pij,pj->pi", kernel, c)
            c = cols / torch.einsum("pij,pi->pj", kernel, r)
            plan = r[:, :, None] * kernel * c[:, None, :]
            if stop == "scaling_change":
                done = (r - before).abs().mean() < threshold
            else:
                done = (plan.sum(2) - rows).abs().sum(1).max() <= threshold
            if done:
                break
    return plan


def align_loop(
    x: Tensor,
    r: Tensor,
    y: Tensor,
    s: Tensor,
    mask: Tensor,
    scale: Tensor | float,
    mode: str = "paper",
    beta: float = 1.0,
    reg: float = 0.1,
    max_iter: int = 100,
    threshold: float = 1e-2,
    stop: str = "scaling_change",
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (B, C), prompt plans (B, C, M, N) and token costs d (B, C, M, N); arguments as of `align_logits`.

    With stop = `marginal` every problem is solved alone; with `scaling_change` the M * N token-level problems of a pair
    together, and all prompt-level problems together.
    """
    x, y = (v / v.norm(dim=-1, keepdim=True) for v in (x, y))
    r, s = (v / v.norm(dim=-1, keepdim=True) for v in (r, s))
    (images, m, j), (classes, n) = r.shape[:3], s.shape[:2]
    cosines, distances = [], []
    for b in range(images):
        for c in range(classes):
            used = mask[c].any(0)
            cost = (1 - torch.einsum("mje,nle->mnjl", r[b], s[c][:, used])).flatten(0, 1)  # (M N, J, tokens of c)
            rows = cost.new_full((m * n, j), 1 / j)
            inside = mask[c][:, used].to(cost)
            cols = (inside / inside.sum(1, keepdim=True)).repeat(m, 1)
            size = m * n if stop == "scaling_change" else 1
            plans = [
                sinkhorn_loop(*parts, reg, max_iter, threshold, stop)
                for parts in zip(cost.detach().split(size), rows.split(size), cols.split(size))
            ]
            distances.append((torch.cat(plans) * cost).sum((1, 2)).view(m, n))
            cosines.append(torch.einsum("me,ne->mn", x[b], y[c]))
    distance, similarity = torch.stack(distances), torch.stack(cosines)  # (B C, M, N)
    if mode == "paper":
        cost = 1 - similarity + beta * distance
    else:
        cost = 1 - similarity + beta * (1 - distance.detach())
    rows, cols = cost.new_full((len(cost), m), 1 / m), cost.new_full((len(cost), n), 1 / n)
    size = len(cost) if stop == "scaling_change" else 1
    plan = torch.cat(
        [
            sinkhorn_loop(*parts, reg, max_iter, threshold, stop)
            for parts in zip(cost.detach().split(size), rows.split(size), cols.split(size))
        ]
    )
    if mode == "paper":
        scores = scale * (1 - (plan * cost).sum((1, 2)))
    else:
        scores = scale * (plan * similarity).sum((1, 2))
    shape = (images, classes, m, n)
    return scores.view(images, classes), plan.view(shape), distance.view(shape)
