"""Cost of entropic transport between every image set and every text set, in little memory.

The fast form of `transport_cost(1 - <r, s>, sinkhorn(...))` for all pairs; tests hold both equal. ALIGN's token level
(trainers/align.py) and PLOT's transport (trainers/plot.py) are built on it.

Axes: B images, C classes, M visual modes, N textual modes, J image tokens, L text tokens, E embedding; b, u parts of
B and of the classes or sentences.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from transport.arguments import check_choices, full_precision, without_autocast
from transport.sinkhorn import (
    GRADIENTS,
    WORKSPACES,
    Rule,
    implicit_gradient,
    make_rule,
    normalized,
    solve,
    transport_cost,
    uniform_mass,
    workspace,
)
from transport.unrolled import unrolled_plan

__all__ = ["SetDistances", "check_axes", "set_distances", "set_sizes"]

COSINES = 2.0  # largest difference of two costs 1 - cosine


class SetDistances(NamedTuple):
    """Result of `set_distances`.

    value: (B, C, M, N) costs of transport, see `transport_cost`.
    entropy: mean entropy of the plans over that of the uniform plan, in [0, 1]; 1 = transport is a plain average.
    iterations: mean Sinkhorn iterations.
    """

    value: Tensor
    entropy: Tensor
    iterations: Tensor


@without_autocast
def set_distances(
    images: Tensor,
    texts: Tensor,
    mask: Tensor | None = None,
    reg: float = 0.1,
    max_iter: int = 100,
    threshold: float | None = None,
    stop: str = "marginal",
    gradient: str = "constant",
    uniform: bool = False,
    budget_bytes: int | None = None,
    sizes: list[int] | None = None,
    together: bool = False,
) -> SetDistances:
    """Cost of transport between every image set and every text set for the cost 1 - cosine, in float32 (float64 stays).

    Args:
        images: (B, M, J, E).
        texts: (C, N, L, E).
        mask: (C, N, L) bool, the tokens that belong to each set, at least one; None = all.
        reg, max_iter, threshold, stop: see `sinkhorn`. Under `scaling_change` the M * N problems of an (image, class)
            pair stop together.
        gradient: see `transport_cost`.
        uniform: plans are the products of their marginals, so that a distance is 1 - a mean cosine.
        budget_bytes: work space; some images and classes are taken at a time, in the backward pass too; None = by
            device. It changes speed and memory, not the result.
        sizes: of `set_sizes` for this mask, None = read from the mask, for which the host waits.
        together: under `scaling_change` all problems of the call stop together, which takes the space of all.

    Raises:
        ValueError: an option out of range, shapes that do not fit, or an empty set.
        FloatingPointError: features that are not finite.
    """
    check_choices(gradient=(gradient, GRADIENTS))
    rule = make_rule(stop, threshold, max_iter, reg)
    if budget_bytes is not None and budget_bytes < 1:
        raise ValueError(f"budget_bytes is {budget_bytes}, expected a positive number of bytes, or None")
    if mask is None:
        mask, sizes = texts.new_ones(texts.shape[:3], dtype=torch.bool), [texts.shape[2]] * len(texts)
    check_axes(images=(images, "BMJE"), texts=(texts, "CNLE"), mask=(mask, "CNL"))
    images = F.normalize(full_precision(images), dim=-1)
    mass = uniform_mass(mask, images.dtype)
    if uniform:
        texts = torch.einsum("cnl,cnle->cne", mass, F.normalize(full_precision(texts), dim=-1))
        value = 1 - torch.einsum("bme,cne->bcmn", images.mean(2), texts)
        return SetDistances(value, value.new_ones(()), value.new_zeros(()))
    if torch.compiler.is_exporting():  # fixed iterations: a graph makes no decisions
        gradient = "constant" if gradient == "implicit" else gradient  # of the same value
        texts = F.normalize(full_precision(texts), dim=-1)
        cost = 1 - torch.einsum("bmje,cnle->bcmnjl", images, texts)
        plan = unrolled_plan(cost, mass[:, None], reg, max_iter)
        value = transport_cost(cost, plan, reg, gradient)
        return SetDistances(value, value.new_zeros(()), value.new_zeros(()))
    budget = sys.maxsize if together else workspace(budget_bytes, images.device)
    sizes = set_sizes(mask, rule.stop) if sizes is None else sizes
    return SetDistances(*_by_size(images, texts, mass, _Work(sizes, rule, budget, gradient, together)))


def set_sizes(mask: Tensor, stop: str) -> list[int]:
    """Sizes, ascending, of the token sets of a mask (C, N, L) that are solved together; waits for the device."""
    joint = mask.shape[1] if stop == "scaling_change" else 1
    return mask.sum(-1).view(-1, joint).amax(1).sort().values.tolist()


class _Work(NamedTuple):
    sizes: list[int]  # largest set of each group of text sets that are solved together, ascending
    rule: Rule
    budget: int
    gradient: str
    together: bool


def _by_size(images: Tensor, texts: Tensor, mass: Tensor, work: _Work) -> tuple[Tensor, Tensor, Tensor]:
    """Costs (B, C, M, N), their plans' mean normalised entropy and mean iterations.

    Sets differ in size, so they are solved in the order of their sizes, which leaves little padding.

    Args:
        images: (B, M, J, E), normalised.
        texts: (C, N, L, E).
        mass: (C, N, L), zero outside the sets.
        work: its sizes are those of `set_sizes`.
    """
    classes, modes, _, width = texts.shape
    joint = modes if work.rule.stop == "scaling_change" else 1  # sentences that are solved together
    inside = mass > 0
    longest = inside.sum(-1).view(-1, joint).amax(1)  # (U,), U = C N / joint
    order = longest.argsort()
    front = inside.int().argsort(stable=True, dim=-1, descending=True)[..., : work.sizes[-1]]  # tokens of the set first
    mass = mass.gather(2, front)
    texts = full_precision(texts.gather(2, front.unsqueeze(-1).expand(-1, -1, -1, width)))
    texts = F.normalize(torch.where((mass > 0).unsqueeze(-1), texts, 0), dim=-1)
    texts, mass = (x.reshape(-1, joint, *x.shape[2:])[order] for x in (texts, mass))
    distance, entropy, iterations = _SetDistance.apply(images, texts, mass, work)  # (B, U, M, joint)
    distance = distance[:, order.argsort()].transpose(2, 3).reshape(len(images), classes, modes, -1)
    return distance.transpose(2, 3), entropy, iterations


class _SetDistance(torch.autograd.Function):
    """Transport costs of sets (see `transport_cost`), mean normalised entropy, mean iterations.

    One matrix product makes the similarities of a part of the images and sentences. Kept for the backward pass are only
    the logarithms of the two scalings of each plan, from which it is made again: with G the derivative of a distance by
    its cost, dd/dr = -G s and dd/ds = -G^T r.
    """

    @staticmethod
    def forward(ctx, images: Tensor, texts: Tensor, mass: Tensor, work: _Work):
        """images (B, M, J, E), texts (U, N, L, E), mass (U, N, L).

        Under `scaling_change` the M * N problems of an (image, text) pair stop together, or all problems of a part.
        """
        sizes, rule, budget, gradient, together = work
        (b, m, j), (u, n) = images.shape[:3], texts.shape[:2]
        distance = images.new_empty(b, u, m, n)
        entropy, iterations = images.new_zeros(()), images.new_zeros(())
        rows = images.new_full((j,), 1 / j)
        parts = _parts(b, sizes, n, m * j * images.element_size(), budget)
        kept = []
        for some, many, length in parts:
            cols = mass[many, None, :, None, :length]  # (u, 1, N, 1, L)
            cost = _similarity(images[some], texts[many, :, :length]).neg_().add_(1)
            cost = cost.permute(0, 3, 1, 4, 2, 5)  # (u, b, N, M, L, J)
            shape = cost.shape[:4]
            found = solve(cost, rows, cols, rule, shape.numel() if together else n * m, COSINES)
            plan, log_rows, log_cols = (x.view(*shape, *x.shape[1:]) for x in found[:3])
            row_sums = plan.sum(-2)
            value = plan.mul_(cost).sum((-2, -1))  # (u, b, N, M)
            # entropy of T = -<T, log T>, log T = log_rows + log_cols - cost / reg
            logs = log_cols.masked_fill(cols == 0, 0)
            joint = value / rule.reg - (row_sums * log_rows).sum(-1) - (cols * logs).sum(-1)
            product = torch.special.entr(row_sums).sum(-1) + torch.special.entr(cols).sum(-1)
            entropy += normalized(joint, product).sum()
            iterations += found.iterations.sum()
            if gradient == "regularized":
                value += rule.reg * (product - joint)
            distance[some, many] = value.permute(1, 0, 3, 2)
            if any(ctx.needs_input_grad):
                kept += [log_rows.sub_(1 / rule.reg), log_cols]
        ctx.save_for_backward(images, texts, *kept)
        ctx.parts, ctx.reg, ctx.gradient = parts, rule.reg, gradient
        entropy, iterations = entropy / distance.numel(), iterations / distance.numel()
        ctx.mark_non_differentiable(entropy, iterations)
        return distance, entropy, iterations

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor, *_):
        images, texts, *kept = ctx.saved_tensors
        grad_images, grad_texts = torch.zeros_like(images), torch.zeros_like(texts)
        with torch.autocast(grad.device.type, enabled=False):
            for (some, many, length), log_rows, log_cols in zip(ctx.parts, kept[::2], kept[1::2]):
                image, text = images[some], texts[many, :, :length]
                logs = _similarity(image, text / ctx.reg)  # (u, N, L, b, M, J)
                logs += log_rows.permute(0, 2, 1, 3, 4).unsqueeze(2)
                logs += log_cols.permute(0, 2, 4, 1, 3).unsqueeze(-1)
                if ctx.gradient == "implicit":
                    plan = logs.exp()
                    logs = logs.masked_fill_(plan == 0, 0).permute(0, 1, 3, 4, 2, 5)
                    plan = implicit_gradient(plan.permute(0, 1, 3, 4, 2, 5), logs).permute(0, 1, 4, 2, 3, 5)
                else:
                    plan = logs.exp_()
                plan = plan * grad[some, many].permute(1, 3, 0, 2)[:, :, None, :, :, None]
                plan = plan.flatten(0, 2).flatten(1)  # (u N L, b M J)
                grad_texts[many, :, :length] -= F.linear(plan, image.flatten(0, 2).T).view_as(text)
                grad_images[some] -= F.linear(plan.T, text.flatten(0, 2).T).view_as(image)
        return grad_images, grad_texts, None, None


def _similarity(images: Tensor, texts: Tensor) -> Tensor:
    """(b, M, J, E), (u, N, L, E) -> (u, N, L, b, M, J): all dot products, image tokens contiguous."""
    product = F.linear(texts.flatten(0, 2), images.flatten(0, 2))
    return product.view(*texts.shape[:3], *images.shape[:3])


def _parts(images: int, sizes: list[int], joint: int, row_bytes: int, budget: int) -> list[tuple[slice, slice, int]]:
    """Slices of images and of successive sets, and their largest size, that fit into `budget` bytes (or are single).

    row_bytes: size of the similarities of one text token with all tokens of one image.
    """
    row_bytes *= WORKSPACES * joint
    fitting = budget // (row_bytes * sizes[-1])
    some = max(1, min(images, fitting * joint // 16))  # some sentences at a time, since thin matrices multiply slowly
    starts, start = [0], 0
    for k, size in enumerate(sizes):
        if k > start and (k + 1 - start) * size * some * row_bytes > budget:
            starts.append(start := k)
    ends = [*starts[1:], len(sizes)]
    return [
        (slice(i, min(i + some, images)), slice(start, end), sizes[end - 1])
        for i in range(0, images, some)
        for start, end in zip(starts, ends)
    ]


def check_axes(**expected: tuple[Tensor, str]) -> None:
    """Tensors by name with the letters of their axes; a letter has one size. Raises ValueError."""
    sizes: dict[str, int] = {}
    for name, (value, axes) in expected.items():
        found = tuple(value.shape)
        if len(found) != len(axes) or 0 in found or any(sizes.setdefault(a, s) != s for a, s in zip(axes, found)):
            known = ", ".join(f"{axis} = {size}" for axis, size in sizes.items())
            raise ValueError(f"{name} has shape {found}, expected ({', '.join(axes)}) without empty axes; {known}")
