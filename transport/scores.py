"""Scores by entropic optimal transport between images and classes, in little memory: PLOT's one level, ALIGN's two.

These are the fast forms of `plot_logits` (trainers/plot.py) and `align_logits` (trainers/align.py), which say what is
computed; tests hold them equal.

Axes: B images, C classes, M visual modes, N textual modes, J image tokens, L text tokens, E embedding; b, u parts of
B and of the classes or sentences.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from transport.sinkhorn import (
    GRADIENTS,
    WORKSPACES,
    Rule,
    entropies,
    full_precision,
    implicit_gradient,
    make_rule,
    normalized,
    sinkhorn,
    solve,
    transport_cost,
    uniform_mass,
    workspace,
)
from transport.unrolled import unrolled_distance, unrolled_plan

__all__ = ["AlignScore", "PlotScore", "align_scores", "plot_scores"]

MODES = ("paper", "released")
PLANS = ("learned", "uniform")
COSINES = 2.0  # largest difference of two costs 1 - cosine


class AlignScore(NamedTuple):
    """Result of `align_scores`.

    scores: (B, C) logits.
    plan: (B, C, M, N) prompt-level plan, a constant.
    token_entropy, prompt_entropy: mean entropy of a level's plans over that of the uniform plan, in [0, 1]; 1 =
        transport is a plain average.
    iterations: (2,) mean Sinkhorn iterations of the token and of the prompt level.
    """

    scores: Tensor
    plan: Tensor
    token_entropy: Tensor
    prompt_entropy: Tensor
    iterations: Tensor


def align_scores(
    image_pooled: Tensor,
    image_tokens: Tensor,
    text_pooled: Tensor,
    text_tokens: Tensor,
    text_mask: Tensor,
    scale: Tensor | float,
    mode: str = "paper",
    plan: str = "learned",
    beta: float = 1.0,
    reg: float = 0.1,
    max_iter: int = 100,
    threshold: float | None = None,
    stop: str | None = None,
    gradient: str = "constant",
    budget_bytes: int | None = None,
    sizes: list[int] | None = None,
) -> AlignScore:
    """Logits of ALIGN, as `align_logits` in trainers/align.py says, in float32 whatever the inputs (float64 stays).

    Args:
        image_pooled: (B, M, E).
        image_tokens: (B, M, J, E).
        text_pooled: (C, N, E).
        text_tokens: (C, N, L, E).
        text_mask: (C, N, L) bool, the tokens that belong to each sentence's set, at least one.
        scale: logit scale.
        mode: `paper` or `released`.
        plan: `learned`, or `uniform`: both plans are the products of their marginals (the ablation).
        beta: weight of the token level.
        reg, max_iter, threshold: of both levels, see `sinkhorn`.
        stop: rule of both levels, see `sinkhorn`. None = `marginal` for `paper` and `scaling_change` for `released`.
            Under the latter the M * N token-level problems of an (image, class) pair stop together, and so do all
            prompt-level problems of the call.
        gradient: of both levels in `paper` mode with learned plans, see `transport_cost`.
        budget_bytes: work space of the token level, which takes some images and classes at a time, in the backward pass
            too; None = by device. It changes speed and memory, not the result.
        sizes: of `set_sizes` for this mask, None = read from the mask, for which the host waits.

    Raises:
        ValueError: unknown mode, plan or gradient, an option out of range, shapes that do not fit, or an empty token
            set.
        FloatingPointError: features that are not finite.
    """
    for name, value, choices in (("mode", mode, MODES), ("plan", plan, PLANS), ("gradient", gradient, GRADIENTS)):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
    if mode == "released" and gradient != "constant":
        raise ValueError(f"gradient is {gradient!r}, expected 'constant': the released form has no other")
    if stop is None:
        stop = "marginal" if mode == "paper" else "scaling_change"
    rule = make_rule(stop, threshold, max_iter, reg)
    if budget_bytes is not None and budget_bytes < 1:
        raise ValueError(f"budget_bytes is {budget_bytes}, expected a positive number of bytes, or None")
    names = ("image_pooled", "image_tokens", "text_pooled", "text_tokens", "text_mask")
    values = (image_pooled, image_tokens, text_pooled, text_tokens, text_mask)
    _check_axes(dict(zip(names, zip(values, ("BME", "BMJE", "CNE", "CNLE", "CNL")))))
    with torch.autocast(image_pooled.device.type, enabled=False):
        images, texts = (F.normalize(full_precision(x), dim=-1) for x in (image_pooled, text_pooled))
        similarity = torch.einsum("bme,cne->bcmn", images, texts)
        mass = uniform_mass(text_mask, similarity.dtype)
        if mode == "released":
            image_tokens, text_tokens = image_tokens.detach(), text_tokens.detach()
        tokens = F.normalize(full_precision(image_tokens), dim=-1)
        token_entropy, token_iterations = similarity.new_ones(()), similarity.new_zeros(())
        if plan == "uniform":
            gradient = "constant"
            words = F.normalize(full_precision(text_tokens), dim=-1)
            average = tokens.mean(2), torch.einsum("cnl,cnle->cne", mass, words)  # (B, M, E), (C, N, E)
            distance = 1 - torch.einsum("bme,cne->bcmn", *average)
        elif torch.compiler.is_exporting():  # fixed iterations: a graph makes no decisions
            gradient = "constant" if gradient == "implicit" else gradient  # of the same value
            words = F.normalize(full_precision(text_tokens), dim=-1)
            distance = unrolled_distance(tokens, words, mass, reg, max_iter, gradient)
        else:
            budget = workspace(budget_bytes, similarity.device)
            sizes = set_sizes(text_mask, rule.stop) if sizes is None else sizes
            level = _token_level(tokens, text_tokens, mass, sizes, rule, budget, gradient)
            distance, token_entropy, token_iterations = level
        cost = 1 - similarity + beta * (distance if mode == "paper" else 1 - distance)  # (B, C, M, N)
        rows, cols = (cost.new_full((count,), 1 / count) for count in cost.shape[2:])
        if plan == "uniform":
            weights, prompt_iterations = (rows.unsqueeze(1) * cols).expand_as(cost), token_iterations
        elif torch.compiler.is_exporting():
            weights, prompt_iterations = unrolled_plan(cost, cols, reg, max_iter), token_iterations
        else:
            group = 1 if stop == "marginal" else None
            span = COSINES * (1 + beta)  # token-level costs lie in [0, 2] too
            weights, steps, _ = sinkhorn(cost, rows, cols, reg, max_iter, rule.threshold, stop, group, span)
            prompt_iterations = steps.to(cost.dtype).mean()
        prompt_entropy = normalized(*entropies(weights)).mean() if plan == "learned" else token_entropy
        if mode == "paper":
            scores = scale * (1 - transport_cost(cost, weights, reg, gradient))
        else:
            scores = scale * (weights * similarity).sum((2, 3))
    iterations = torch.stack([token_iterations, prompt_iterations])
    return AlignScore(scores, weights, token_entropy, prompt_entropy, iterations)


class PlotScore(NamedTuple):
    """Result of `plot_scores`: scores (B, C); mean entropy of the plans over that of the uniform plan, in [0, 1]; mean
    Sinkhorn iterations."""

    scores: Tensor
    entropy: Tensor
    iterations: Tensor


def plot_scores(
    image_set: Tensor,
    text_set: Tensor,
    scale: Tensor | float,
    reg: float = 0.1,
    max_iter: int = 100,
    threshold: float | None = None,
    stop: str = "marginal",
    budget_bytes: int | None = None,
) -> PlotScore:
    """Logits of PLOT, as `plot_logits` in trainers/plot.py says, in float32 whatever the inputs (float64 stays).

    Args:
        image_set: (B, M, E), local features or modes.
        text_set: (C, N, E), prompts.
        scale: logit scale.
        reg, max_iter, threshold, stop: see `sinkhorn`. Under `scaling_change` all B * C problems stop together, as in
            the released code, so that the other images and classes of a call change a score slightly.
        budget_bytes: work space, as of `align_scores`; `scaling_change` needs that of all problems.

    Raises:
        ValueError: an option out of range, or shapes that do not fit.
        FloatingPointError: features that are not finite.
    """
    rule = make_rule(stop, threshold, max_iter, reg)
    _check_axes({"image_set": (image_set, "BME"), "text_set": (text_set, "CNE")})
    together = stop == "scaling_change"
    with torch.autocast(image_set.device.type, enabled=False):
        images, texts = (F.normalize(full_precision(x), dim=-1).unsqueeze(1) for x in (image_set, text_set))
        classes, _, size, _ = texts.shape
        mass = texts.new_full((classes, 1, size), 1 / size)
        if torch.compiler.is_exporting():
            distance = unrolled_distance(images, texts, mass, reg, max_iter)
            return PlotScore(scale * (1 - distance[..., 0, 0]), distance.new_zeros(()), distance.new_zeros(()))
        budget = sys.maxsize if together else workspace(budget_bytes, images.device)
        distance, entropy, iterations = _TokenDistance.apply(
            images, texts, mass, [size] * classes, rule, budget, "constant", together
        )
        return PlotScore(scale * (1 - distance.flatten(1)), entropy, iterations)


def set_sizes(mask: Tensor, stop: str) -> list[int]:
    """Sizes, ascending, of the token sets of a mask (C, N, L) that are solved together; waits for the device."""
    joint = mask.shape[1] if stop == "scaling_change" else 1
    return mask.sum(-1).view(-1, joint).amax(1).sort().values.tolist()


def _token_level(
    images: Tensor, texts: Tensor, mass: Tensor, sizes: list[int], rule: Rule, budget: int, gradient: str
) -> tuple[Tensor, Tensor, Tensor]:
    """d (B, C, M, N), its plans' mean normalised entropy and mean iterations.

    Token sets differ in size, so they are solved in the order of their sizes, which leaves little padding.

    Args:
        images: (B, M, J, E), normalised.
        texts: (C, N, L, E).
        mass: (C, N, L), zero outside the sets.
        sizes: of `set_sizes`.
    """
    classes, modes, _, width = texts.shape
    joint = modes if rule.stop == "scaling_change" else 1  # sentences that are solved together
    inside = mass > 0
    longest = inside.sum(-1).view(-1, joint).amax(1)  # (U,), U = C N / joint
    order = longest.argsort()
    front = inside.int().argsort(stable=True, dim=-1, descending=True)[..., : sizes[-1]]  # tokens of the set first
    mass = mass.gather(2, front)
    texts = full_precision(texts.gather(2, front.unsqueeze(-1).expand(-1, -1, -1, width)))
    texts = F.normalize(torch.where((mass > 0).unsqueeze(-1), texts, 0), dim=-1)
    texts, mass = (x.reshape(-1, joint, *x.shape[2:])[order] for x in (texts, mass))
    distance, entropy, iterations = _TokenDistance.apply(
        images, texts, mass, sizes, rule, budget, gradient
    )  # (B, U, M, joint)
    distance = distance[:, order.argsort()].transpose(2, 3).reshape(len(images), classes, modes, -1)
    return distance.transpose(2, 3), entropy, iterations


class _TokenDistance(torch.autograd.Function):
    """Transport costs of token sets (see `transport_cost`), mean normalised entropy, mean iterations.

    One matrix product makes the similarities of a part of the images and sentences. Kept for the backward pass are only
    the logarithms of the two scalings of each plan, from which it is made again: with G the derivative of a distance by
    its cost, dd/dr = -G s and dd/ds = -G^T r.
    """

    @staticmethod
    def forward(
        ctx,
        images: Tensor,
        texts: Tensor,
        mass: Tensor,
        sizes: list[int],
        rule: Rule,
        budget: int,
        gradient: str,
        together: bool = False,
    ):
        """images (B, M, J, E), texts (U, N, L, E), mass (U, N, L); sizes: largest set of each of the U, ascending.

        Under `scaling_change` the M * N problems of an (image, text) pair stop together, or all problems of a part.
        """
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
        return grad_images, grad_texts, *[None] * 6


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


def _check_axes(expected: dict[str, tuple[Tensor, str]]) -> None:
    """Tensors by name with the letters of their axes; a letter has one size. Raises ValueError."""
    sizes: dict[str, int] = {}
    for name, (value, axes) in expected.items():
        found = tuple(value.shape)
        if len(found) != len(axes) or 0 in found or any(sizes.setdefault(a, s) != s for a, s in zip(axes, found)):
            known = ", ".join(f"{axis} = {size}" for axis, size in sizes.items())
            raise ValueError(f"{name} has shape {found}, expected ({', '.join(axes)}) without empty axes; {known}")
