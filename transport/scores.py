"""Scores by entropic optimal transport between images and classes: one level (PLOT) and two levels (ALIGN).

Chen et al., "PLOT: Prompt Learning with Optimal Transport for Vision-Language Models", ICLR 2023.
Wang et al., "Tuning Multi-mode Token-level Prompt Alignment across Modalities", NeurIPS 2023.

Axes: B images, C classes, M visual modes, N textual modes, J image tokens, L text tokens, E embedding; b, c parts of
B, C.
"""

from __future__ import annotations

import math
import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from transport.sinkhorn import (
    THRESHOLDS,
    WORKSPACES,
    Rule,
    Transport,
    full_precision,
    make_rule,
    sinkhorn,
    solve,
    uniform_mass,
    workspace,
)
from transport.unrolled import unrolled_distance, unrolled_plan

__all__ = ["AlignScore", "PlotScore", "Transport", "align_scores", "plot_scores", "sinkhorn", "uniform_mass"]

MODES = ("paper", "released")
PLANS = ("learned", "uniform")


class AlignScore(NamedTuple):
    """Result of `align_scores`.

    scores: (B, C) logits.
    plan: (B, C, M, N) prompt-level plan, a constant.
    token_entropy, prompt_entropy: mean entropy of a level's plans over that of the uniform plan, in [0, 1] up to the
        plans' error; 1 = transport is a plain average.
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
    budget_bytes: int | None = None,
    compiled: bool = False,
) -> AlignScore:
    """Logits of ALIGN: an image and a class are sets of modes, a mode is a set of tokens, compared on both levels.

    With x, r the image's pooled features and tokens and y, s the class's, all L2-normalised here::

        token level   Chat_jl = 1 - r_mj . s_nl        d_mn = <T_mn, Chat>
        prompt level  C_mn = 1 - x_m . y_n + beta * d_mn
        logit         scale * (1 - <T, C>)

    with uniform marginals over the tokens of a set and over the modes. The plans are constants (envelope theorem) and
    the costs carry the gradient, so tokens learn through d. That is `paper`. `released` is what the authors' code
    computes: it adds the token-level *similarity*, C_mn = 1 - x_m . y_n + beta * <T_mn, 1 - Chat>, and its logit is
    scale * sum(T * (x_m . y_n)), so that the token level acts through T alone and gets no gradient.
    Computed in float32 whatever the inputs (float64 stays).

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
        budget_bytes: work space of the token level, which takes some images and classes at a time, in the backward pass
            too; None = by device. It changes speed and memory, not the result.
        compiled: iterations of the token level by torch.compile, where `stop` is `marginal`; equal to rounding. Needs a
            C++ compiler on a CPU and Triton on a GPU.

    Returns:
        AlignScore(scores, plan, token_entropy, prompt_entropy, iterations).

    Raises:
        ValueError: unknown mode or plan, an option out of range, shapes that do not fit, or an empty token set.
        FloatingPointError: features that are not finite.
    """
    for name, value, choices in (("mode", mode, MODES), ("plan", plan, PLANS)):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
    if stop is None:
        stop = "marginal" if mode == "paper" else "scaling_change"
    rule = make_rule(stop, threshold, max_iter, reg, compiled)
    if budget_bytes is not None and budget_bytes < 1:
        raise ValueError(f"budget_bytes is {budget_bytes}, expected a positive number of bytes, or None")
    _check_shapes(image_pooled, image_tokens, text_pooled, text_tokens, text_mask)
    with torch.autocast(image_pooled.device.type, enabled=False):
        images, texts = (F.normalize(full_precision(x), dim=-1) for x in (image_pooled, text_pooled))
        similarity = torch.einsum("bme,cne->bcmn", images, texts)
        mass = uniform_mass(text_mask, similarity.dtype)
        if mode == "released":
            image_tokens, text_tokens = image_tokens.detach(), text_tokens.detach()
        tokens = F.normalize(full_precision(image_tokens), dim=-1)
        one, none = similarity.new_ones(()), similarity.new_zeros(())
        if plan == "uniform":
            words = F.normalize(full_precision(text_tokens), dim=-1)
            average = tokens.mean(2), torch.einsum("cnl,cnle->cne", mass, words)  # (B, M, E), (C, N, E)
            distance, token_entropy, token_iterations = 1 - torch.einsum("bme,cne->bcmn", *average), one, none
        elif torch.compiler.is_exporting():  # fixed iterations: a graph makes no decisions
            words = F.normalize(full_precision(text_tokens), dim=-1)
            distance, token_entropy, token_iterations = unrolled_distance(tokens, words, mass, reg, max_iter), one, none
        else:
            budget = workspace(budget_bytes, similarity.device)
            distance, token_entropy, token_iterations = _token_level(tokens, text_tokens, mass, rule, budget)
        cost = 1 - similarity + beta * (distance if mode == "paper" else 1 - distance)  # (B, C, M, N)
        modes = cost.shape[2:]
        if plan == "uniform":
            weights = torch.full_like(cost.detach(), 1 / modes.numel())
            prompt_entropy, prompt_iterations = one, none
        elif torch.compiler.is_exporting():
            weights = unrolled_plan(cost, cost.new_full((modes[1],), 1 / modes[1]), reg, max_iter)
            prompt_entropy, prompt_iterations = one, none
        else:
            rows, cols = (cost.new_full((count,), 1 / count) for count in modes)
            group = 1 if stop == "marginal" else None
            weights, steps, _ = sinkhorn(cost, rows, cols, reg, max_iter, rule.threshold, stop, group)
            prompt_iterations = steps.to(cost.dtype).mean()
            most = math.log(modes.numel())
            prompt_entropy = torch.special.entr(weights).sum((2, 3)).mean() / most if most > 0 else one
        if mode == "paper":
            scores = scale * (1 - (weights * cost).sum((2, 3)))
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
    """Logits of PLOT: an image and a class are sets of features, compared by transport (PLOT, Eq. 5 to 8).

    With the features u_m of an image and w_n of a class, L2-normalised here, and S_mn = u_m . w_n::

        T = the plan of cost 1 - S with uniform marginals        logit = scale * sum(T * S)

    The plan is a constant, S carries the gradient. Computed in float32 whatever the inputs (float64 stays).

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
    _check_axes({"image_set": (image_set, ("B", "M", "E")), "text_set": (text_set, ("C", "N", "E"))})
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
            images, texts, mass, [size] * classes, rule, budget, together
        )
        return PlotScore(scale * (1 - distance.flatten(1)), entropy, iterations)


PLOT_OPTIONS = {
    "LAMBDA": 0.1,  # entropic weight
    "MAX_ITER": 100,  # Sinkhorn iterations at most
    "STOP": "marginal",  # marginal: each pair stops by itself; scaling_change: all pairs of a batch together (released)
    "THRESHOLD": None,  # Sinkhorn stops below this error; None = 1e-3 (marginal), 1e-2 (scaling_change)
}
"""Options that every method with `plot_scores` has, and their defaults."""
PLOT_RULES = {
    "LAMBDA": (lambda value: value > 0, "a number above 0"),
    "MAX_ITER": (lambda value: value >= 1, "at least 1"),
    "STOP": (THRESHOLDS.__contains__, f"one of {', '.join(THRESHOLDS)}"),
    "THRESHOLD": (lambda value: value is None or value > 0, "a number above 0, or None"),
}
"""Checks of these options, for `CLIPTrainer.check_options`."""


class SetTransport:
    """`plot_scores` with a method's options: (image_set, text_set, scale) -> scores (B, C).

    `entropy` is that of the last call's plans, 1 = uniform, so that a log shows what transport adds.
    """

    def __init__(self, options):
        self.settings = {
            "reg": options.LAMBDA,
            "max_iter": options.MAX_ITER,
            "threshold": options.THRESHOLD,
            "stop": options.STOP,
        }
        self.entropy: dict[str, Tensor] = {}

    def __call__(self, image_set: Tensor, text_set: Tensor, scale: Tensor | float) -> Tensor:
        found = plot_scores(image_set, text_set, scale, **self.settings)
        self.entropy = {"plan_entropy": found.entropy}
        return found.scores


def _token_level(images: Tensor, texts: Tensor, mass: Tensor, rule: Rule, budget: int) -> tuple[Tensor, Tensor, Tensor]:
    """d (B, C, M, N), its plans' mean normalised entropy and mean iterations.

    Token sets differ in size, so they are solved in the order of their sizes, which leaves little padding.

    Args:
        images: (B, M, J, E), normalised.
        texts: (C, N, L, E).
        mass: (C, N, L), zero outside the sets.
    """
    classes, modes, _, width = texts.shape
    joint = modes if rule.stop == "scaling_change" else 1  # sentences that are solved together
    inside = mass > 0
    longest = inside.sum(-1).view(-1, joint).amax(1)  # (U,), U = C N / joint
    sizes = longest.sort().values.tolist()  # waits for the device
    order = longest.argsort()
    front = inside.int().argsort(stable=True, dim=-1, descending=True)[..., : sizes[-1]]  # tokens of the set first
    mass = mass.gather(2, front)
    texts = full_precision(texts.gather(2, front.unsqueeze(-1).expand(-1, -1, -1, width)))
    texts = F.normalize(torch.where((mass > 0).unsqueeze(-1), texts, 0), dim=-1)
    texts, mass = (x.reshape(-1, joint, *x.shape[2:])[order] for x in (texts, mass))
    distance, entropy, iterations = _TokenDistance.apply(
        images, texts, mass, sizes, rule, budget, False
    )  # (B, U, M, joint)
    distance = distance[:, order.argsort()].transpose(2, 3).reshape(len(images), classes, modes, -1)
    return distance.transpose(2, 3), entropy, iterations


class _TokenDistance(torch.autograd.Function):
    """<T, 1 - r s^T> for constant plans T, mean normalised entropy, mean iterations.

    One matrix product makes the similarities of a part of the images and sentences. Kept for the backward pass are only
    the logarithms of the two scalings of each plan, from which it is made again: dd/dr = -T s, dd/ds = -T^T r.
    """

    @staticmethod
    def forward(
        ctx, images: Tensor, texts: Tensor, mass: Tensor, sizes: list[int], rule: Rule, budget: int, together: bool
    ):
        """images (B, M, J, E), texts (U, N, L, E), mass (U, N, L); sizes: largest set of each of the U, ascending.

        Under `scaling_change` the M * N problems of an (image, text) pair stop together, or all problems of a part.
        """
        (b, m, j), (u, n) = images.shape[:3], texts.shape[:2]
        distance = images.new_empty(b, u, m, n)
        entropy, iterations = images.new_zeros(()), images.new_zeros(())
        rows = images.new_full((1, 1, j), 1 / j)
        parts = _parts(b, sizes, n, m * j * images.element_size(), budget)
        kept = []
        for some, many, length in parts:
            cols = mass[many, :, :length].flatten(0, 1).unsqueeze(-1)  # (u N, L, 1)
            cost = _similarity(images[some], texts[many, :, :length]).neg_().add_(1)  # (u N, L, b M, J)
            group = (cost.shape[0], cost.shape[2]) if together else (n, m)
            plan, log_rows, log_cols, steps, _ = solve(cost, rows, cols, rule, group)
            value = plan.mul_(cost).sum((1, 3))  # (u N, b M)
            distance[some, many] = value.view(-1, n, some.stop - some.start, m).permute(2, 0, 3, 1)
            # entropy = -<T, log T>, and <T, log_rows> = its mean under the row masses
            most = math.log(j) + (cols > 0).sum(1).log()  # (u N, 1)
            total = most + value / rule.reg - log_rows.mean(-1) - (log_cols * cols).sum(1)
            entropy += torch.where(most > 0, total / most, 1).sum()
            iterations += steps.sum()
            if any(ctx.needs_input_grad):
                kept += [log_rows.sub_(1 / rule.reg + math.log(j)), log_cols.add_(cols.log())]
        ctx.save_for_backward(images, texts, *kept)
        ctx.parts, ctx.reg = parts, rule.reg
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
                plan = _similarity(image, text / ctx.reg)  # (u N, L, b M, J)
                plan = plan.add_(log_rows.unsqueeze(1)).add_(log_cols.unsqueeze(-1)).exp_()
                weight = grad[some, many].permute(1, 3, 0, 2).reshape(len(plan), 1, -1, 1)  # (u N, 1, b M, 1)
                plan = plan.mul_(weight).flatten(0, 1).flatten(1)  # (u N L, b M J)
                grad_texts[many, :, :length] -= F.linear(plan, image.flatten(0, 2).T).view_as(text)
                grad_images[some] -= F.linear(plan.T, text.flatten(0, 2).T).view_as(image)
        return grad_images, grad_texts, None, None, None, None, None


def _similarity(images: Tensor, texts: Tensor) -> Tensor:
    """(b, M, J, E), (u, N, L, E) -> (u N, L, b M, J): all dot products, image tokens contiguous."""
    product = F.linear(texts.flatten(0, 2), images.flatten(0, 2))
    return product.view(-1, texts.shape[2], images.shape[0] * images.shape[1], images.shape[2])


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


def _check_shapes(pooled: Tensor, tokens: Tensor, text_pooled: Tensor, text_tokens: Tensor, mask: Tensor) -> None:
    _check_axes(
        {
            "image_pooled": (pooled, ("B", "M", "E")),
            "image_tokens": (tokens, ("B", "M", "J", "E")),
            "text_pooled": (text_pooled, ("C", "N", "E")),
            "text_tokens": (text_tokens, ("C", "N", "L", "E")),
            "text_mask": (mask, ("C", "N", "L")),
        }
    )


def _check_axes(expected: dict[str, tuple[Tensor, tuple[str, ...]]]) -> None:
    """Tensors by name with the letters of their axes; a letter has one size. Raises ValueError."""
    sizes: dict[str, int] = {}
    for name, (value, axes) in expected.items():
        found = tuple(value.shape)
        if len(found) != len(axes) or 0 in found or any(sizes.setdefault(a, s) != s for a, s in zip(axes, found)):
            known = ", ".join(f"{axis} = {size}" for axis, size in sizes.items())
            raise ValueError(f"{name} has shape {found}, expected ({', '.join(axes)}) without empty axes; {known}")
