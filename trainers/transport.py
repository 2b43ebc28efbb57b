"""Entropic optimal transport: the one Sinkhorn of the project, and ALIGN's two-level score built on it.

Axes: B images, C classes, M visual modes, N textual modes, J image tokens, L text tokens, E embedding.
Sinkhorn: Cuturi, "Sinkhorn Distances", NeurIPS 2013. Score: Wang et al., "Tuning Multi-mode Token-level Prompt Alignment
across Modalities", NeurIPS 2023.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

logger = logging.getLogger(__name__)

THRESHOLDS = {"marginal": 1e-3, "scaling_change": 1e-2}
"""Stop rules of `sinkhorn` and their default thresholds."""
MODES = ("paper", "released")
PLANS = ("learned", "uniform")
CPU_BUDGET, GPU_BUDGET = 12 << 20, 1 << 30
"""Bytes of work space: on a CPU what stays in the cache, which is several times faster than main memory."""
_WORKSPACES = 3  # tensors of the size of the cost that a block of problems needs: cost, kernel, product
_CHECK_EVERY = 10  # iterations between two looks at the device; a CPU is looked at in every iteration

_reported: set[tuple] = set()  # settings whose lack of convergence was logged


class Transport(NamedTuple):
    """Result of `sinkhorn`; leading axes as the cost's.

    plan: (..., R, K), non-negative; its column sums are `col_mass` to rounding, its row sums `row_mass` up to `error`.
    iterations: (...) int, iterations that the problem took.
    error: (...) sum over the rows of |row sum - row mass|.
    """

    plan: Tensor
    iterations: Tensor
    error: Tensor


class AlignScore(NamedTuple):
    """Result of `align_scores`.

    scores: (B, C) logits. plan: (B, C, M, N) prompt-level plan, constant. token_entropy, prompt_entropy: mean entropy of
    the plans of a level, divided by that of the uniform plan: 1 = transport adds nothing to an average, 0 = a matching.
    iterations: (2,) mean Sinkhorn iterations of the token level and of the prompt level.
    """

    scores: Tensor
    plan: Tensor
    token_entropy: Tensor
    prompt_entropy: Tensor
    iterations: Tensor


def uniform_mass(mask: Tensor) -> Tensor:
    """Equal mass on the true entries of every row and none on the others; rows sum to 1.

    Args:
        mask: (..., K) bool.

    Returns:
        (..., K) float32.

    Raises:
        ValueError: a row without any true entry, or a mask that is not bool.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype}, expected torch.bool")
    count = mask.sum(-1, keepdim=True)
    empty = int((count == 0).sum())
    if empty:
        raise ValueError(f"{empty} of {count.numel()} sets of shape {tuple(mask.shape)} are empty: each needs one true entry")
    return mask / count.float()


def sinkhorn(
    cost: Tensor,
    row_mass: Tensor,
    col_mass: Tensor,
    reg: float = 0.1,
    max_iter: int = 100,
    threshold: float | None = None,
    stop: str = "marginal",
    group: int | None = 1,
) -> Transport:
    """Plans T that minimise <T, cost> - reg * entropy(T) for given row and column sums, for a batch of problems at once.

    One iteration fits the rows, then the columns. A problem that has met the stop rule is frozen, so its plan does not
    depend on the other problems of the batch (unless `group` says so). The result is a constant: no gradient flows through
    the plan. Half precision is raised to float32. Problems whose costs differ by less than 40 * reg (float32; 320 * reg in
    float64) are solved with scalings of the kernel exp(-cost / reg), others in the log domain: slower, and stable at any reg.

    Args:
        cost: (..., R, K). What stands in rows or columns of zero mass is not read.
        row_mass: (R,) or broadcastable to (..., R), non-negative. Zero = padding: exactly no mass arrives there.
        col_mass: (K,) or broadcastable to (..., K), of the same total as `row_mass`.
        reg: weight of the entropy, in the unit of the cost.
        max_iter: iterations at most; a warning is logged once when some problem needs more.
        threshold: see `stop`; None = THRESHOLDS[stop].
        stop: `marginal`: when the sum over the rows of |row sum - row mass| is at most `threshold`.
            `scaling_change`: when the mean over the rows of |r - r_previous| is below `threshold`, where diag(r) exp(-cost /
            reg) diag(c) is the plan and r = c = 1 at the start: the rule of PLOT's and ALIGN's released code. It depends on
            the scale of r, so it may stop early.
        group: for `scaling_change`, number of successive problems (in the order of the flattened leading axes) over
            which the mean runs and which stop together; None = all problems of the call.

    Returns:
        Transport(plan, iterations, error).

    Raises:
        ValueError: an option out of range, shapes that do not fit, or masses that are negative, empty or unequal in total.
        FloatingPointError: a cost that is not finite, with the number of such entries and problems.
    """
    rule = _rule(stop, threshold, max_iter, reg)
    if cost.dim() < 2 or 0 in cost.shape:
        raise ValueError(f"cost has shape {tuple(cost.shape)}, expected (..., R, K) and at least one problem")
    if group is not None and stop == "marginal" and group != 1:
        raise ValueError(f"group is {group}: with stop='marginal' every problem stops by itself")
    cost = _full(cost.detach())
    leading, (height, width) = cost.shape[:-2], cost.shape[-2:]
    rows = _mass(row_mass, cost, (*leading, height), "row_mass")
    cols = _mass(col_mass, cost, (*leading, width), "col_mass")
    empty = _check_masses(rows, cols)
    cost = cost.reshape(-1, height, width)
    if empty:
        cost = _fill_padding(cost, rows, cols)
    count = len(cost)
    group = count if group is None else group
    if group < 1 or count % group:
        raise ValueError(f"group is {group}, expected a divisor of the {count} problems, or None for all of them")
    size = _budget(None, cost.device) // (_WORKSPACES * height * width * cost.element_size())
    size = max(group, size // group * group)
    plan = torch.empty_like(cost)
    iterations, error = [], []
    for start in range(0, count, size):
        part = slice(start, start + size)
        found = _solve(  # (problems, K, 1, R): the rows are the contiguous axis
            cost[part].transpose(1, 2).unsqueeze(2), rows[part].unsqueeze(1), cols[part].unsqueeze(2), rule, (group, 1)
        )
        plan[part] = found.plan.squeeze(2).transpose(1, 2)
        iterations.append(found.iterations.squeeze(1))
        error.append(found.error.squeeze(1))
    return Transport(
        plan.reshape(*leading, height, width), torch.cat(iterations).reshape(leading), torch.cat(error).reshape(leading)
    )


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
    """Logits of ALIGN: images and classes as sets of modes, modes as sets of tokens, compared by transport on both levels.

    With x, r the image's pooled features and tokens and y, s the class's, all L2-normalised here::

        token level   Chat_jl = 1 - r_mj . s_nl      d_mn = <T_mn, Chat>
        prompt level  C_mn = 1 - x_m . y_n + beta * d_mn
        paper         logit = scale * (1 - <T, C>)

    with uniform marginals over the tokens of each set and over the modes. Plans are constants (envelope theorem), costs
    carry the gradient, so tokens learn through d. `released` is what the authors' code computes: the token-level
    *similarity* is added, C_mn = 1 - x_m . y_n + beta * <T_mn, 1 - Chat>, and logit = scale * sum(T * (x_m . y_n)), so that
    the token level acts through T alone and gets no gradient. Computed in float32 whatever the inputs (float64 stays).

    Args:
        image_pooled: (B, M, E).
        image_tokens: (B, M, J, E).
        text_pooled: (C, N, E).
        text_tokens: (C, N, L, E).
        text_mask: (C, N, L) bool, the tokens that belong to each sentence's set, at least one.
        scale: logit scale, positive.
        mode: `paper` or `released`.
        plan: `learned`, or `uniform`: both plans are the products of their marginals (the ablation).
        beta: weight of the token level.
        reg, max_iter, threshold: of both levels, see `sinkhorn`.
        stop: stop rule of both levels, see `sinkhorn`; None = `marginal` for `paper`, `scaling_change` for `released`, where
            the M * N token-level problems of an (image, class) pair stop together, and all prompt-level problems of the call.
        budget_bytes: work space for the token level, which is computed for some images and classes at a time, in the
            backward pass as well; None = by device. It changes speed and memory, not the result.

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
    rule = _rule(stop, threshold, max_iter, reg)
    _check_shapes(image_pooled, image_tokens, text_pooled, text_tokens, text_mask)
    if budget_bytes is not None and budget_bytes < 1:
        raise ValueError(f"budget_bytes is {budget_bytes}, expected a positive number of bytes or None")
    with torch.autocast(image_pooled.device.type, enabled=False):
        pooled = [F.normalize(_full(x), dim=-1) for x in (image_pooled, text_pooled)]
        used = text_mask.flatten(0, 1).any(0).nonzero().squeeze(1)
        text_tokens, text_mask = text_tokens.index_select(2, used), text_mask.index_select(2, used)
        tokens = [F.normalize(_full(x), dim=-1) for x in (image_tokens, text_tokens)]
        if mode == "released":
            tokens = [x.detach() for x in tokens]
        mass = uniform_mass(text_mask).to(tokens[1].dtype)
        similarity = torch.einsum("bme,cne->bcmn", *pooled)
        pairs = similarity.shape[-2:]
        if plan == "uniform":
            average = [tokens[0].mean(2), (mass.unsqueeze(-1) * tokens[1]).sum(2)]  # (B, M, E), (C, N, E)
            distance = 1 - torch.einsum("bme,cne->bcmn", *average)
            token_entropy, token_iterations = similarity.new_ones(()), similarity.new_zeros(())
        else:
            options = (rule, _budget(budget_bytes, similarity.device))
            distance, token_entropy, token_iterations = _TokenDistance.apply(*tokens, mass, options)
        token_cost = distance if mode == "paper" else 1 - distance
        cost = 1 - similarity + beta * token_cost  # (B, C, M, N)
        if plan == "uniform":
            weights = torch.full_like(cost.detach(), 1 / math.prod(pairs))
            prompt_entropy, prompt_iterations = similarity.new_ones(()), similarity.new_zeros(())
        else:
            rows, cols = (similarity.new_full((n,), 1 / n) for n in pairs)
            group = 1 if stop == "marginal" else None
            found = sinkhorn(cost, rows, cols, reg, max_iter, rule.threshold, stop, group)
            weights, prompt_iterations = found.plan, found.iterations.to(found.plan.dtype).mean()
            most = math.log(math.prod(pairs))
            entropy = torch.special.entr(weights).sum((-2, -1)).mean()
            prompt_entropy = entropy / most if most > 0 else torch.ones_like(entropy)
        if mode == "paper":
            scores = scale * (1 - (weights * cost).sum((-2, -1)))
        else:
            scores = scale * (weights * similarity).sum((-2, -1))
    return AlignScore(
        scores, weights, token_entropy, prompt_entropy, torch.stack([token_iterations, prompt_iterations])
    )


class _TokenDistance(torch.autograd.Function):
    """d (B, C, M, N) = <T_mn, 1 - r_m s_n^T> with constant plans T, mean normalised entropy and mean iterations.

    One matrix product gives the similarities of a chunk of images and classes. Only the logarithms of the two scalings of
    a plan are kept for the backward pass, which makes the plan again: dd/dr = -T s, dd/ds = -T^T r.
    """

    @staticmethod
    def forward(ctx, images: Tensor, texts: Tensor, mass: Tensor, options: tuple[_Rule, int]):
        """images (B, M, J, E), texts (C, N, L, E), mass (C, N, L); normalised."""
        rule, budget = options
        (b, m, j), (c, n, length) = images.shape[:3], texts.shape[:3]
        distance = images.new_empty(b, c, m, n)
        entropy, iterations = images.new_zeros(()), images.new_zeros(())
        rows = images.new_full((1, 1, j), 1 / j)
        sizes = (mass > 0).sum(-1).to(mass.dtype)  # (C, N) tokens of each set
        most = (math.log(j) + sizes.log()).view(c, n, 1, 1)
        chunks = _chunks(b, c, m * n * j * length * images.element_size(), budget)
        kept = []
        for some, classes in chunks:
            cost = _similarity(images[some], texts[classes]).neg_().add_(1)  # (c N, L, b M, J)
            cols = mass[classes].flatten(0, 1).unsqueeze(-1)  # (c N, L, 1)
            found = _solve(cost, rows, cols, rule, (n, m))
            value = found.plan.mul_(cost).sum((1, 3)).view(-1, n, *images[some].shape[:2])  # (c, N, b, M)
            distance[some, classes] = value.permute(2, 0, 3, 1)
            # log T = log_rows + log_cols + log of both masses - cost / reg, and the masses sum the first two to a mean
            log_rows, log_cols = found.log_rows, found.log_cols  # (c N, b M, J), (c N, L, b M)
            means = log_rows.mean(-1) + (log_cols * cols).sum(1)
            bound = most[classes]
            total = bound + value / rule.reg - means.view_as(value)
            entropy += torch.where(bound > 0, total / bound, 1).sum()
            iterations += found.iterations.sum()
            kept += [log_rows.sub_(1 / rule.reg + math.log(j)), log_cols.add_(cols.log())]
        if any(ctx.needs_input_grad):
            ctx.save_for_backward(images, texts, *kept)
            ctx.chunks, ctx.reg = chunks, rule.reg
        problems = distance.numel()
        entropy, iterations = entropy / problems, iterations / problems
        ctx.mark_non_differentiable(entropy, iterations)
        return distance, entropy, iterations

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor, *_):
        images, texts, *kept = ctx.saved_tensors
        grad_images, grad_texts = torch.zeros_like(images), torch.zeros_like(texts)
        with torch.autocast(grad.device.type, enabled=False):
            for k, (some, classes) in enumerate(ctx.chunks):
                image, text = images[some], texts[classes]
                log_rows, log_cols = kept[2 * k], kept[2 * k + 1]
                weight = grad[some, classes].permute(1, 3, 0, 2).reshape(len(log_rows), 1, -1, 1)  # (c N, 1, b M, 1)
                plan = _similarity(image, text / ctx.reg).add_(log_rows.unsqueeze(1)).add_(log_cols.unsqueeze(-1)).exp_()
                plan = plan.mul_(weight).view(text[..., 0].numel(), -1)  # (c N L, b M J)
                grad_texts[classes].view(-1, text.shape[-1]).addmm_(plan, image.flatten(0, 2), alpha=-1)
                grad_images[some].view(-1, image.shape[-1]).addmm_(plan.T, text.flatten(0, 2), alpha=-1)
        return grad_images, grad_texts, None, None


def _similarity(images: Tensor, texts: Tensor) -> Tensor:
    """(b, M, J, E), (c, N, L, E) -> (c N, L, b M, J): all dot products, image tokens contiguous."""
    product = texts.flatten(0, 2) @ images.flatten(0, 2).T
    return product.view(-1, texts.shape[2], images.shape[0] * images.shape[1], images.shape[2])


def _chunks(images: int, classes: int, pair_bytes: int, budget: int) -> list[tuple[slice, slice]]:
    """Slices of images and classes whose token-level problems fit into `budget` bytes of work space."""
    pairs = max(1, budget // (_WORKSPACES * pair_bytes))
    some = min(images, max(1, pairs // 4))  # a few classes at least, since thin matrices multiply slowly
    many = min(classes, max(1, pairs // some))
    return [
        (slice(i, min(i + some, images)), slice(k, min(k + many, classes)))
        for i in range(0, images, some)
        for k in range(0, classes, many)
    ]


class _Rule(NamedTuple):
    stop: str
    threshold: float
    max_iter: int
    reg: float


class _Solution(NamedTuple):
    """plan = mass_row * mass_col * exp(log_rows + log_cols - cost / reg), see `_solve` for the axes."""

    plan: Tensor  # (G, X, H, Y)
    log_rows: Tensor  # (G, H, Y)
    log_cols: Tensor  # (G, X, H)
    iterations: Tensor  # (G, H)
    error: Tensor  # (G, H)


def _solve(cost: Tensor, rows: Tensor, cols: Tensor, rule: _Rule, group: tuple[int, int]) -> _Solution:
    """Sinkhorn for G * H problems with row axis Y (the longer, contiguous one) and column axis X.

    Args:
        cost: (G, X, H, Y), finite where there is mass or not at all.
        rows: masses, broadcastable to (G, H, Y).
        cols: masses, broadcastable to (G, X, H).
        group: problems that stop together under `scaling_change`: so many along G, so many along H.
    """
    low, high = cost.amin((1, 3)), cost.amax((1, 3))  # (G, H)
    limit = 0.455 * math.log(torch.finfo(cost.dtype).max)  # scalings reach exp(2 * spread) in the worst case
    hard = (high - low) / rule.reg > limit
    finite = torch.isfinite(low) & torch.isfinite(high)
    broken, many = torch.stack([(~finite).sum(), hard.sum()]).tolist()
    if broken:
        entries = int((~torch.isfinite(cost)).sum())
        raise FloatingPointError(
            f"transport cost is not finite: {entries} of {cost.numel()} entries in {broken} of {finite.numel()} problems"
        )
    exponent = torch.empty(cost.shape, dtype=cost.dtype, device=cost.device)  # contiguous, whatever the cost is
    torch.sub(low[:, None, :, None], cost, out=exponent).mul_(1 / rule.reg)
    shift = low / rule.reg
    if many == 0:
        found = _iterate(_Scalings(exponent, rows, cols), shift, rule, group)
    elif many == hard.numel() or rule.stop != "marginal":  # problems that stop together are solved together
        found = _iterate(_Logarithms(exponent, rows, cols), shift, rule, group)
    else:
        found = _split(exponent, rows, cols, shift, rule, hard)
    return found._replace(log_rows=found.log_rows.add_(shift.unsqueeze(-1)))


def _split(exponent: Tensor, rows: Tensor, cols: Tensor, shift: Tensor, rule: _Rule, hard: Tensor) -> _Solution:
    """Solves the problems marked in `hard` in the log domain and the others with scalings."""
    g, x, h, y = exponent.shape
    whole = _Solution(
        exponent.new_empty(g, h, x, y),
        exponent.new_empty(g, h, y),
        exponent.new_empty(g, h, x),
        torch.empty(g, h, dtype=torch.int64, device=exponent.device),
        exponent.new_empty(g, h),
    )
    rows, cols = rows.expand(g, h, y), cols.expand(g, x, h).transpose(1, 2)
    for form, chosen in ((_Scalings, ~hard), (_Logarithms, hard)):
        part = exponent.transpose(1, 2)[chosen].unsqueeze(2)  # (problems, X, 1, Y)
        solver = form(part, rows[chosen].unsqueeze(1), cols[chosen].unsqueeze(2))
        found = _iterate(solver, shift[chosen].unsqueeze(1), rule, (1, 1))
        for target, value in zip(whole, (found.plan.squeeze(2), *found[1:])):
            target[chosen] = value.reshape(-1, *target.shape[2:])
    return whole._replace(plan=whole.plan.transpose(1, 2), log_cols=whole.log_cols.transpose(1, 2))


class _Scalings:
    """Half steps on scalings r (G, H, Y) and c (G, X, H), relative to the masses: plan = rows * cols * r * c * kernel."""

    def __init__(self, exponent: Tensor, rows: Tensor, cols: Tensor):
        self.kernel, self.rows, self.cols = exponent.exp_(), rows, cols
        self.product = torch.empty_like(self.kernel)

    def start(self, shape: torch.Size) -> Tensor:
        return torch.where(self.cols > 0, 1 / self.cols, 0).expand(shape)

    def fit_rows(self, c: Tensor) -> Tensor:
        torch.mul(self.kernel, (self.cols * c).unsqueeze(-1), out=self.product)
        return self.product.sum(1).reciprocal_()

    def fit_cols(self, r: Tensor) -> Tensor:
        torch.mul(self.kernel, (self.rows * r).unsqueeze(1), out=self.product)
        return self.product.sum(-1).reciprocal_()

    def ratio(self, r: Tensor, new: Tensor) -> Tensor:
        return r / new

    def linear(self, r: Tensor, shift: Tensor) -> Tensor:
        return r * shift.exp().unsqueeze(-1)

    def finish(self, r: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        plan = self.kernel.mul_((self.rows * r).unsqueeze(1)).mul_((self.cols * c).unsqueeze(-1))
        return plan, r.log(), c.log()


class _Logarithms:
    """The same half steps on log r and log c."""

    def __init__(self, exponent: Tensor, rows: Tensor, cols: Tensor):
        self.exponent, self.rows, self.cols = exponent, rows, cols
        self.log_rows, self.log_cols = rows.log(), cols.log()  # -inf where there is no mass

    def start(self, shape: torch.Size) -> Tensor:
        return torch.where(self.cols > 0, -self.log_cols, 0).expand(shape)

    def fit_rows(self, c: Tensor) -> Tensor:
        return (self.exponent + (self.log_cols + c).unsqueeze(-1)).logsumexp(1).neg_()

    def fit_cols(self, r: Tensor) -> Tensor:
        return (self.exponent + (self.log_rows + r).unsqueeze(1)).logsumexp(-1).neg_()

    def ratio(self, r: Tensor, new: Tensor) -> Tensor:
        return (r - new).exp_()

    def linear(self, r: Tensor, shift: Tensor) -> Tensor:
        return (r + shift.unsqueeze(-1)).exp_()

    def finish(self, r: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = self.exponent + (self.log_rows + r).unsqueeze(1) + (self.log_cols + c).unsqueeze(-1)
        return total.exp_(), r, c


def _iterate(form: _Scalings | _Logarithms, shift: Tensor, rule: _Rule, group: tuple[int, int]) -> _Solution:
    """Runs half steps until every problem meets the stop rule; frozen problems keep their scalings.

    The row error of (r, c) needs the row sums, which the next row step computes anyway: rows * r / fit_rows(c).
    """
    rows, every = form.rows, 1 if shift.device.type == "cpu" else _CHECK_EVERY
    active = torch.ones(shift.shape, dtype=torch.bool, device=shift.device)
    iterations = torch.zeros(shift.shape, dtype=torch.int64, device=shift.device)
    new = r = form.fit_rows(c := form.start((shift.shape[0], form.cols.shape[1], shift.shape[1])))
    previous = (rows > 0).to(shift.dtype)
    step = 0
    while True:
        r = torch.where(active.unsqueeze(-1), new, r)
        c = torch.where(active.unsqueeze(1), form.fit_cols(r), c)
        iterations += active
        step += 1
        if rule.stop == "scaling_change":
            value = rows * form.linear(r, shift)
            active = active & ~(_mean_change(value - previous, rows, group) < rule.threshold)
            previous = value
        new = form.fit_rows(c)
        error = form.ratio(r, new).sub_(1).abs_().mul_(rows).sum(-1)  # (G, H)
        if rule.stop == "marginal":
            active = active & (error > rule.threshold)
        if step == rule.max_iter or (step % every == 0 and not bool(active.any())):
            break
    _report(active, error, rule)
    return _Solution(*form.finish(r, c), iterations, error)


def _mean_change(change: Tensor, rows: Tensor, group: tuple[int, int]) -> Tensor:
    """Mean |change| (G, H, Y) over the rows that have mass and over groups of problems, for each problem: (G, H)."""
    g, h, _ = change.shape
    count = (rows > 0).sum(-1).expand(g, h)
    blocks = (g // group[0], group[0], h // group[1], group[1])
    total = change.abs_().sum(-1).view(blocks).sum((1, 3), keepdim=True)
    mean = total / count.reshape(blocks).sum((1, 3), keepdim=True)
    return mean.expand(blocks).reshape(g, h)


def _report(active: Tensor, error: Tensor, rule: _Rule) -> None:
    """Logs once per setting that problems did not meet their stop rule."""
    if rule in _reported or not bool(active.any()):
        return
    _reported.add(rule)
    logger.warning(
        "Sinkhorn: %d of %d problems did not meet stop=%s below %g in %d iterations (reg %g); row sums are off by up to %.2g "
        "(L1). Raise max_iter or reg. This is logged once.",
        int(active.sum()), active.numel(), rule.stop, rule.threshold, rule.max_iter, rule.reg, float(error.max()),
    )  # fmt: skip


def _full(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()


def _budget(given: int | None, device: torch.device) -> int:
    if given is not None:
        return given
    return CPU_BUDGET if device.type == "cpu" else GPU_BUDGET


def _rule(stop: str, threshold: float | None, max_iter: int, reg: float) -> _Rule:
    if stop not in THRESHOLDS:
        raise ValueError(f"stop is {stop!r}, expected one of {', '.join(THRESHOLDS)}")
    threshold = THRESHOLDS[stop] if threshold is None else threshold
    if not (math.isfinite(reg) and reg > 0):
        raise ValueError(f"reg is {reg}, expected a finite number above 0")
    if not threshold > 0:
        raise ValueError(f"threshold is {threshold}, expected a number above 0")
    if max_iter < 1:
        raise ValueError(f"max_iter is {max_iter}, expected at least 1")
    return _Rule(stop, float(threshold), int(max_iter), float(reg))


def _mass(mass: Tensor, cost: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Masses as (problems, K) in the type of the cost."""
    try:
        full = mass.detach().to(cost).expand(shape)
    except RuntimeError as error:
        raise ValueError(f"{name} has shape {tuple(mass.shape)}, expected one broadcastable to {shape}") from error
    return full.reshape(-1, shape[-1])


def _check_masses(rows: Tensor, cols: Tensor) -> bool:
    """Whether some mass is zero, after checking (one wait for the device) that the masses are possible."""
    total, other = rows.sum(-1), cols.sum(-1)
    valid = bool((rows >= 0).all() & (cols >= 0).all() & (total > 0).all() & torch.isfinite(total).all())
    if not valid:
        raise ValueError("row_mass and col_mass must be finite, not negative, and not all zero in any problem")
    gap = float(((total - other).abs() / total).max())
    if not gap < 1e-4:
        raise ValueError(f"row_mass and col_mass differ in their totals by {gap:.2g} (relative): scale one to the other")
    return bool((rows == 0).any() | (cols == 0).any())


def _fill_padding(cost: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """cost (problems, R, K) with a real entry of the same problem wherever there is no mass."""
    problem = torch.arange(len(cost), device=cost.device)
    entry = cost[problem, rows.argmax(-1), cols.argmax(-1)].view(-1, 1, 1)
    return torch.where((rows > 0).unsqueeze(-1) & (cols > 0).unsqueeze(-2), cost, entry)


def _check_shapes(image_pooled: Tensor, image_tokens: Tensor, text_pooled: Tensor, text_tokens: Tensor, mask: Tensor) -> None:
    images = image_tokens.dim() == 4 and image_pooled.shape == image_tokens.shape[:2] + image_tokens.shape[3:]
    texts = text_tokens.dim() == 4 and text_pooled.shape == text_tokens.shape[:2] + text_tokens.shape[3:]
    same = images and texts and image_pooled.shape[-1] == text_pooled.shape[-1]
    if not same or mask.shape != text_tokens.shape[:3]:
        raise ValueError(
            "expected image_pooled (B, M, E), image_tokens (B, M, J, E), text_pooled (C, N, E), text_tokens (C, N, L, E) and "
            f"text_mask (C, N, L), got {', '.join(str(tuple(x.shape)) for x in (image_pooled, image_tokens, text_pooled))}, "
            f"{tuple(text_tokens.shape)} and {tuple(mask.shape)}"
        )
