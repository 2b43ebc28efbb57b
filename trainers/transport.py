"""ALIGN's score: two levels of entropic optimal transport between images and classes.

Wang et al., "Tuning Multi-mode Token-level Prompt Alignment across Modalities", NeurIPS 2023.

Axes: B images, C classes, M visual modes, N textual modes, J image tokens, L text tokens, E embedding; b, c parts of
B, C.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .sinkhorn import WORKSPACES, Rule, Transport, full_precision, make_rule, sinkhorn, solve, uniform_mass, workspace

__all__ = ["AlignScore", "Transport", "align_scores", "sinkhorn", "uniform_mass"]

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
    rule = make_rule(stop, threshold, max_iter, reg)
    if budget_bytes is not None and budget_bytes < 1:
        raise ValueError(f"budget_bytes is {budget_bytes}, expected a positive number of bytes, or None")
    _check_shapes(image_pooled, image_tokens, text_pooled, text_tokens, text_mask)
    with torch.autocast(image_pooled.device.type, enabled=False):
        images, texts = (F.normalize(full_precision(x), dim=-1) for x in (image_pooled, text_pooled))
        similarity = torch.einsum("bme,cne->bcmn", images, texts)
        used = text_mask.flatten(0, 1).any(0).nonzero().squeeze(1)
        mass = uniform_mass(text_mask.index_select(2, used), similarity.dtype)
        tokens = [F.normalize(full_precision(x), dim=-1) for x in (image_tokens, text_tokens.index_select(2, used))]
        if mode == "released":
            tokens = [x.detach() for x in tokens]
        one, none = similarity.new_ones(()), similarity.new_zeros(())
        if plan == "uniform":
            average = tokens[0].mean(2), (mass.unsqueeze(-1) * tokens[1]).sum(2)  # (B, M, E), (C, N, E)
            distance, token_entropy, token_iterations = 1 - torch.einsum("bme,cne->bcmn", *average), one, none
        else:
            budget = workspace(budget_bytes, similarity.device)
            distance, token_entropy, token_iterations = _TokenDistance.apply(*tokens, mass, rule, budget)
        cost = 1 - similarity + beta * (distance if mode == "paper" else 1 - distance)  # (B, C, M, N)
        modes = cost.shape[2:]
        if plan == "uniform":
            weights = torch.full_like(cost.detach(), 1 / modes.numel())
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


class _TokenDistance(torch.autograd.Function):
    """d (B, C, M, N) = <T_mn, 1 - r_m s_n^T> for constant plans T, mean normalised entropy, mean iterations.

    One matrix product makes the similarities of a part of the images and classes. Kept for the backward pass are only
    the logarithms of the two scalings of each plan, from which it is made again: dd/dr = -T s, dd/ds = -T^T r.
    """

    @staticmethod
    def forward(ctx, images: Tensor, texts: Tensor, mass: Tensor, rule: Rule, budget: int):
        """images (B, M, J, E), texts (C, N, L, E), both normalised; mass (C, N, L)."""
        (b, m, j), (c, n, length) = images.shape[:3], texts.shape[:3]
        distance = images.new_empty(b, c, m, n)
        entropy, iterations = images.new_zeros(()), images.new_zeros(())
        rows = images.new_full((1, 1, j), 1 / j)
        parts = _parts(b, c, m * n * j * length * images.element_size(), budget)
        kept = []
        for some, classes in parts:
            cols = mass[classes].flatten(0, 1).unsqueeze(-1)  # (c N, L, 1)
            cost = _similarity(images[some], texts[classes]).neg_().add_(1)  # (c N, L, b M, J)
            plan, log_rows, log_cols, steps, _ = solve(cost, rows, cols, rule, (n, m))
            value = plan.mul_(cost).sum((1, 3))  # (c N, b M)
            distance[some, classes] = value.view(-1, n, some.stop - some.start, m).permute(2, 0, 3, 1)
            # entropy = -<T, log T>, and <T, log_rows> = its mean under the row masses
            most = math.log(j) + (cols > 0).sum(1).log()  # (c N, 1)
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
            for (some, classes), log_rows, log_cols in zip(ctx.parts, kept[::2], kept[1::2]):
                image, text = images[some], texts[classes]
                plan = _similarity(image, text / ctx.reg)  # (c N, L, b M, J)
                plan = plan.add_(log_rows.unsqueeze(1)).add_(log_cols.unsqueeze(-1)).exp_()
                weight = grad[some, classes].permute(1, 3, 0, 2).reshape(len(plan), 1, -1, 1)  # (c N, 1, b M, 1)
                plan = plan.mul_(weight).view(text[..., 0].numel(), -1)  # (c N L, b M J)
                grad_texts[classes].view(len(plan), -1).addmm_(plan, image.flatten(0, 2), alpha=-1)
                grad_images[some].view(plan.shape[1], -1).addmm_(plan.T, text.flatten(0, 2), alpha=-1)
        return grad_images, grad_texts, None, None, None


def _similarity(images: Tensor, texts: Tensor) -> Tensor:
    """(b, M, J, E), (c, N, L, E) -> (c N, L, b M, J): all dot products, image tokens contiguous."""
    product = texts.flatten(0, 2) @ images.flatten(0, 2).T
    return product.view(-1, texts.shape[2], images.shape[0] * images.shape[1], images.shape[2])


def _parts(images: int, classes: int, pair_bytes: int, budget: int) -> list[tuple[slice, slice]]:
    """Slices of images and classes whose token-level problems fit into `budget` bytes, one pair of them at least."""
    pairs = max(1, budget // (WORKSPACES * pair_bytes))
    some = min(images, max(1, pairs // 4))  # a few classes at a time, since thin matrices multiply slowly
    many = min(classes, max(1, pairs // some))
    return [
        (slice(i, min(i + some, images)), slice(k, min(k + many, classes)))
        for i in range(0, images, some)
        for k in range(0, classes, many)
    ]


def _check_shapes(pooled: Tensor, tokens: Tensor, text_pooled: Tensor, text_tokens: Tensor, mask: Tensor) -> None:
    expected = {
        "image_pooled": (pooled, ("B", "M", "E")),
        "image_tokens": (tokens, ("B", "M", "J", "E")),
        "text_pooled": (text_pooled, ("C", "N", "E")),
        "text_tokens": (text_tokens, ("C", "N", "L", "E")),
        "text_mask": (mask, ("C", "N", "L")),
    }
    sizes: dict[str, int] = {}
    for name, (value, axes) in expected.items():
        found = tuple(value.shape)
        if len(found) != len(axes) or 0 in found or any(sizes.setdefault(a, s) != s for a, s in zip(axes, found)):
            known = ", ".join(f"{axis} = {size}" for axis, size in sizes.items())
            raise ValueError(f"{name} has shape {found}, expected ({', '.join(axes)}) without empty axes; {known}")
