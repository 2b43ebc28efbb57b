"""Entropic optimal transport: the one Sinkhorn of the project, for many small problems at once.

Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", NeurIPS 2013.

Solver axes: G * H problems with X columns and Y rows each, as (G, X, H, Y). Two problem axes let the similarities of
all images and classes be solved in the layout in which one matrix product makes them; rows, the longer side, are
contiguous.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import shutil
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

THRESHOLDS = {"marginal": 1e-3, "scaling_change": 1e-2}
"""Stop rules of `sinkhorn` and their default thresholds."""
WORKSPACES = 3
"""Tensors of the size of the cost that a block of problems needs: cost, kernel, product."""
CPU_BUDGET, GPU_BUDGET = 12 << 20, 1 << 30  # bytes; on a CPU what stays in the cache
CHECK_EVERY = 10  # iterations between two looks at a device other than the CPU

_reported: set[Rule] = set()  # settings whose lack of convergence was logged


class Transport(NamedTuple):
    """Result of `sinkhorn`; leading axes as the cost's.

    plan: (..., R, K), not negative; its column sums are `col_mass` to rounding, its row sums `row_mass` up to `error`.
    iterations: (...) int, iterations that the problem took.
    error: (...) sum over the rows of |row sum - row mass|.
    """

    plan: Tensor
    iterations: Tensor
    error: Tensor


class Rule(NamedTuple):
    """When the solver stops and the weight of the entropy; see `sinkhorn`."""

    stop: str
    threshold: float
    max_iter: int
    reg: float
    compiled: bool = False  # iterations by torch.compile, where the rule is `marginal` and scalings are used


class Solution(NamedTuple):
    """Result of `solve`: plan = row mass * column mass * exp(log_rows + log_cols - cost / reg)."""

    plan: Tensor  # (G, X, H, Y)
    log_rows: Tensor  # (G, H, Y)
    log_cols: Tensor  # (G, X, H)
    iterations: Tensor  # (G, H)
    error: Tensor  # (G, H)


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
    """Plans T that minimise <T, cost> - reg * entropy(T) for given row and column sums, a batch of problems at once.

    One iteration fits the rows, then the columns. A problem that has met the stop rule is frozen, so its plan does not
    depend on the others of the batch (unless `group` says so). The plan is a constant: no gradient flows through it.
    Half precision is raised to float32. Problems whose costs span less than 40 * reg (float32; 320 * reg in float64)
    are solved with scalings of the kernel exp(-cost / reg), others in the log domain: slower, and stable at any reg.

    Args:
        cost: (..., R, K). What stands in rows or columns of zero mass is not read.
        row_mass: (R,) or broadcastable to (..., R), not negative. Zero = padding: exactly no mass arrives there.
        col_mass: (K,) or broadcastable to (..., K), of the same total as `row_mass`.
        reg: weight of the entropy, in the unit of the cost.
        max_iter: iterations at most; a warning is logged once when some problem would need more.
        threshold: see `stop`; None = THRESHOLDS[stop].
        stop: `marginal`: when the sum over the rows of |row sum - row mass| is at most `threshold`.
            `scaling_change`: when the mean over the rows of |r - r_previous| is below `threshold`, where the plan is
            diag(r) exp(-cost / reg) diag(c) and r = c = 1 at the start. This is the rule of PLOT's and ALIGN's released
            code; it depends on the scale of r, that is on reg and on the level of the cost.
        group: for `scaling_change`, the number of successive problems (in the order of the flattened leading axes) over
            which the mean runs and which stop together; None = all problems of the call.

    Returns:
        Transport(plan, iterations, error).

    Raises:
        ValueError: an option out of range, shapes that do not fit, masses that are negative, empty or of unequal total.
        FloatingPointError: a cost that is not finite, with the number of such entries and problems.
    """
    rule = make_rule(stop, threshold, max_iter, reg)
    if cost.dim() < 2 or 0 in cost.shape:
        raise ValueError(f"cost has shape {tuple(cost.shape)}, expected (..., R, K) and at least one problem")
    if stop == "marginal" and group != 1:
        raise ValueError(f"group is {group}, expected 1: with stop='marginal' every problem stops by itself")
    cost = full_precision(cost.detach())
    leading, (height, width) = cost.shape[:-2], cost.shape[-2:]
    rows = _mass(row_mass, cost, (*leading, height), "row_mass")
    cols = _mass(col_mass, cost, (*leading, width), "col_mass")
    padded = _check_masses(rows, cols)
    cost = cost.reshape(-1, height, width)
    if padded:
        cost = _fill_padding(cost, rows, cols)
    count = len(cost)
    group = count if group is None else group
    if group < 1 or count % group:
        raise ValueError(f"group is {group}, expected a divisor of the {count} problems, or None for all of them")
    size = workspace(None, cost.device) // (WORKSPACES * height * width * cost.element_size())
    size = max(group, size // group * group)
    plan = torch.empty_like(cost)
    iterations, error = [], []
    for start in range(0, count, size):
        part = slice(start, start + size)
        block = cost[part].transpose(1, 2).unsqueeze(2)  # (problems, K, 1, R)
        found = solve(block, rows[part].unsqueeze(1), cols[part].unsqueeze(2), rule, (group, 1))
        plan[part] = found.plan.squeeze(2).transpose(1, 2)
        iterations.append(found.iterations.squeeze(1))
        error.append(found.error.squeeze(1))
    plan = plan.reshape(*leading, height, width)
    return Transport(plan, torch.cat(iterations).reshape(leading), torch.cat(error).reshape(leading))


def uniform_mass(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Equal mass on the true entries of every row and none on the others; each row sums to 1.

    Args:
        mask: (..., K) bool.
        dtype: type of the masses.

    Returns:
        (..., K).

    Raises:
        ValueError: a row without any true entry, or a mask that is not bool.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype}, expected torch.bool")
    count = mask.sum(-1, keepdim=True)
    empty = 0 if torch.compiler.is_exporting() else int((count == 0).sum())
    if empty:
        raise ValueError(f"{empty} of {count.numel()} sets have no true entry in a mask of shape {tuple(mask.shape)}")
    return mask / count.to(dtype)


def make_rule(stop: str, threshold: float | None, max_iter: int, reg: float, compiled: bool = False) -> Rule:
    """Checked options of `sinkhorn`; None = the rule's default threshold. Raises ValueError."""
    if stop not in THRESHOLDS:
        raise ValueError(f"stop is {stop!r}, expected one of {', '.join(THRESHOLDS)}")
    threshold = THRESHOLDS[stop] if threshold is None else threshold
    if not (math.isfinite(reg) and reg > 0):
        raise ValueError(f"reg is {reg}, expected a finite number above 0")
    if not threshold > 0:
        raise ValueError(f"threshold is {threshold}, expected a number above 0")
    if max_iter < 1:
        raise ValueError(f"max_iter is {max_iter}, expected at least 1")
    return Rule(stop, float(threshold), int(max_iter), float(reg), compiled)


def full_precision(x: Tensor) -> Tensor:
    """x in float32, or in float64 if it is."""
    return x if x.dtype == torch.float64 else x.float()


def workspace(budget_bytes: int | None, device: torch.device) -> int:
    """Bytes that a block of problems may take; None = by device."""
    if budget_bytes is not None:
        return budget_bytes
    return CPU_BUDGET if device.type == "cpu" else GPU_BUDGET


def solve(cost: Tensor, rows: Tensor, cols: Tensor, rule: Rule, group: tuple[int, int]) -> Solution:
    """`sinkhorn` for G * H problems, without checks of shapes and masses.

    Args:
        cost: (G, X, H, Y), any strides.
        rows: masses, broadcastable to (G, H, Y).
        cols: masses, broadcastable to (G, X, H).
        rule: the stop rule.
        group: problems that stop together under `scaling_change`: so many successive ones along G and along H.

    Returns:
        Solution.

    Raises:
        FloatingPointError: a cost that is not finite.
    """
    low, high = cost.amin((1, 3)), cost.amax((1, 3))  # (G, H)
    limit = 0.455 * math.log(torch.finfo(cost.dtype).max)  # the logarithm of a scaling stays below twice the span
    hard = (high - low) / rule.reg > limit
    finite = torch.isfinite(low) & torch.isfinite(high)
    broken, many = torch.stack([(~finite).sum(), hard.sum()]).tolist()
    if broken:
        entries = int((~torch.isfinite(cost)).sum())
        raise FloatingPointError(
            f"the transport cost is not finite in {entries} of {cost.numel()} entries ({broken} problems)"
        )
    exponent = torch.empty(cost.shape, dtype=cost.dtype, device=cost.device)  # contiguous, whatever the cost is
    torch.sub(low[:, None, :, None], cost, out=exponent).mul_(1 / rule.reg)
    shift = low / rule.reg
    if many == 0 and rule.compiled and rule.stop == "marginal":
        found = _iterate_compiled(_Scalings(exponent, rows, cols), rule)
    elif many == 0:
        found = _iterate(_Scalings(exponent, rows, cols), shift, rule, group)
    elif many == hard.numel() or rule.stop != "marginal":  # problems that stop together are solved together
        found = _iterate(_Logarithms(exponent, rows, cols), shift, rule, group)
    else:
        found = _split(exponent, rows, cols, shift, rule, hard)
    return found._replace(log_rows=found.log_rows.add_(shift.unsqueeze(-1)))


def _split(exponent: Tensor, rows: Tensor, cols: Tensor, shift: Tensor, rule: Rule, hard: Tensor) -> Solution:
    """Solves the problems marked in `hard` (G, H) in the log domain and the others with scalings."""
    g, x, h, y = exponent.shape
    whole = (
        exponent.new_empty(g, h, x, y),
        exponent.new_empty(g, h, y),
        exponent.new_empty(g, h, x),
        torch.empty(g, h, dtype=torch.int64, device=exponent.device),
        exponent.new_empty(g, h),
    )
    rows, cols = rows.expand(g, h, y), cols.expand(g, x, h).transpose(1, 2)
    for form, chosen in ((_Scalings, ~hard), (_Logarithms, hard)):
        part = exponent.transpose(1, 2)[chosen].unsqueeze(2)  # (problems, X, 1, Y)
        steps = form(part, rows[chosen].unsqueeze(1), cols[chosen].unsqueeze(2))
        found = _iterate(steps, shift[chosen].unsqueeze(1), rule, (1, 1))
        for target, value in zip(whole, (found.plan.squeeze(2), *found[1:])):
            target[chosen] = value.reshape(-1, *target.shape[2:])
    plan, log_rows, log_cols, iterations, error = whole
    return Solution(plan.transpose(1, 2), log_rows, log_cols.transpose(1, 2), iterations, error)


class _Scalings:
    """Half steps on scalings r (G, H, Y) and c (G, X, H) relative to the masses: plan = rows * cols * r * c * kernel.

    r and c stay positive and finite where there is no mass; the plan is exactly zero there. Overwrites the exponent.
    """

    def __init__(self, exponent: Tensor, rows: Tensor, cols: Tensor):
        self.kernel, self.rows, self.cols = exponent.exp_(), rows, cols
        self.product = torch.empty_like(self.kernel)

    def start(self) -> Tensor:
        """c with cols * c = 1, of the shape of cols."""
        return torch.where(self.cols > 0, 1 / self.cols, 0)

    def fit_rows(self, c: Tensor) -> Tensor:
        torch.mul(self.kernel, (self.cols * c).unsqueeze(-1), out=self.product)
        return self.product.sum(1).reciprocal_()

    def fit_cols(self, r: Tensor) -> Tensor:
        torch.mul(self.kernel, (self.rows * r).unsqueeze(1), out=self.product)
        return self.product.sum(-1).reciprocal_()

    def ratio(self, r: Tensor, other: Tensor) -> Tensor:
        return r / other

    def linear(self, r: Tensor, shift: Tensor) -> Tensor:
        """The scaling that belongs to the kernel exp(-cost / reg)."""
        return r * shift.exp().unsqueeze(-1)

    def finish(self, r: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        plan = self.kernel.mul_((self.rows * r).unsqueeze(1)).mul_((self.cols * c).unsqueeze(-1))
        return plan, r.log(), c.log()


class _Logarithms:
    """The same half steps on log r and log c."""

    def __init__(self, exponent: Tensor, rows: Tensor, cols: Tensor):
        self.exponent, self.rows, self.cols = exponent, rows, cols
        self.log_rows, self.log_cols = rows.log(), cols.log()  # -inf where there is no mass

    def start(self) -> Tensor:
        return torch.where(self.cols > 0, -self.log_cols, 0)

    def fit_rows(self, c: Tensor) -> Tensor:
        return (self.exponent + (self.log_cols + c).unsqueeze(-1)).logsumexp(1).neg_()

    def fit_cols(self, r: Tensor) -> Tensor:
        return (self.exponent + (self.log_rows + r).unsqueeze(1)).logsumexp(-1).neg_()

    def ratio(self, r: Tensor, other: Tensor) -> Tensor:
        return (r - other).exp_()

    def linear(self, r: Tensor, shift: Tensor) -> Tensor:
        return (r + shift.unsqueeze(-1)).exp_()

    def finish(self, r: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = self.exponent + (self.log_rows + r).unsqueeze(1) + (self.log_cols + c).unsqueeze(-1)
        return total.exp_(), r, c


def _iterate(form: _Scalings | _Logarithms, shift: Tensor, rule: Rule, group: tuple[int, int]) -> Solution:
    """Half steps until every problem has met the stop rule; those that have keep their scalings.

    The row sums of (r, c) cost nothing: the next row step computes them anyway, as row mass * r / fit_rows(c).
    """
    rows, every = form.rows, 1 if shift.device.type == "cpu" else CHECK_EVERY
    active = torch.ones(shift.shape, dtype=torch.bool, device=shift.device)
    iterations = torch.zeros(shift.shape, dtype=torch.int64, device=shift.device)
    previous = (rows > 0).to(shift.dtype)  # r = 1 at the start
    c = form.start()
    new = r = form.fit_rows(c)
    for step in range(1, rule.max_iter + 1):
        r = torch.where(active.unsqueeze(-1), new, r)
        c = torch.where(active.unsqueeze(1), form.fit_cols(r), c)
        iterations += active
        new = form.fit_rows(c)
        error = form.ratio(r, new).sub_(1).abs_().mul_(rows).sum(-1)  # (G, H)
        if rule.stop == "marginal":
            active = active & (error > rule.threshold)
        else:
            value = rows * form.linear(r, shift)
            active = active & ~(_mean_change(value - previous, rows, group) < rule.threshold)
            previous = value
        if step % every == 0 and not bool(active.any()):
            break
    _report(active, error, rule)
    return Solution(*form.finish(r, c), iterations, error)


class _State(NamedTuple):
    """Between two iterations: r (G, H, Y), the next r, c (G, X, H), and (G, H) which go on, iterations, error."""

    r: Tensor
    new: Tensor
    c: Tensor
    active: Tensor
    iterations: Tensor
    error: Tensor


def _marginal_steps(kernel: Tensor, rows: Tensor, cols: Tensor, state: _State, threshold: float, steps: int) -> _State:
    """So many iterations of `_iterate` with `_Scalings` and the rule `marginal`, without side effects.

    A compiler makes one pass over the kernel of each product and its sum; step by step it takes three.
    """
    r, new, c, active, iterations, error = state
    for _ in range(steps):
        r = torch.where(active.unsqueeze(-1), new, r)
        c = torch.where(active.unsqueeze(1), (kernel * (rows * r).unsqueeze(1)).sum(-1).reciprocal(), c)
        iterations = iterations + active
        new = (kernel * (cols * c).unsqueeze(-1)).sum(1).reciprocal()
        error = ((r / new - 1).abs() * rows).sum(-1)
        active = active & (error > threshold)
    return _State(r, new, c, active, iterations, error)


@functools.cache
def _compiled_steps() -> Callable[..., _State]:
    """`_marginal_steps` by torch.compile, which compiles at the first calls. Raises ValueError without a compiler."""
    compilers = (os.environ.get("CXX", "g++"), "clang++")
    if not any(map(shutil.which, compilers)):
        raise ValueError(f"torch.compile needs a C++ compiler, none of {', '.join(compilers)} is found: install one")
    return torch.compile(_marginal_steps, dynamic=True)


def _iterate_compiled(form: _Scalings, rule: Rule) -> Solution:
    """`_iterate` by torch.compile, for the rule `marginal`; equal to rounding."""
    g, _, h, _ = form.kernel.shape
    c = form.start().expand(form.kernel.shape[:-1]).contiguous()
    r, count = form.fit_rows(c), form.kernel.new_zeros(g, h)
    state = _State(r, r, c, count == 0, count.long(), count)
    every = 1 if r.device.type == "cpu" else CHECK_EVERY
    for done in range(0, rule.max_iter, every):
        steps = min(every, rule.max_iter - done)
        state = _compiled_steps()(form.kernel, form.rows, form.cols, state, rule.threshold, steps)
        if not bool(state.active.any()):
            break
    _report(state.active, state.error, rule)
    return Solution(*form.finish(state.r, state.c), state.iterations, state.error)


def _mean_change(change: Tensor, rows: Tensor, group: tuple[int, int]) -> Tensor:
    """Mean |change| (G, H, Y) over the rows that have mass and over the problem's group, for each problem: (G, H)."""
    g, h, _ = change.shape
    count = (rows > 0).sum(-1).expand(g, h)
    groups = (g // group[0], group[0], h // group[1], group[1])
    total = change.abs_().sum(-1).view(groups).sum((1, 3), keepdim=True)
    mean = total / count.reshape(groups).sum((1, 3), keepdim=True)
    return mean.expand(groups).reshape(g, h)


def _report(active: Tensor, error: Tensor, rule: Rule) -> None:
    """Logs once per setting that problems did not meet their stop rule."""
    if rule in _reported or not bool(active.any()):
        return
    _reported.add(rule)
    logger.warning(
        "Sinkhorn: %d of %d problems did not come below %g (%s) in %d iterations at reg %g; the row sums of a plan are "
        "off by up to %.2g in total. Raise max_iter or reg. Logged once.",
        *(int(active.sum()), active.numel(), rule.threshold, rule.stop, rule.max_iter, rule.reg),
        float(error.max()),
    )


def _mass(mass: Tensor, cost: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """Masses as (problems, K) in the type of the cost."""
    try:
        full = mass.detach().to(cost).expand(shape)
    except RuntimeError as error:
        raise ValueError(f"{name} has shape {tuple(mass.shape)}, expected one broadcastable to {shape}") from error
    return full.reshape(-1, shape[-1])


def _check_masses(rows: Tensor, cols: Tensor) -> bool:
    """True if some mass is zero; also checks that the masses are possible (one wait for the device)."""
    total, other = rows.sum(-1), cols.sum(-1)
    possible = (rows >= 0).all() & (cols >= 0).all() & (total > 0).all() & torch.isfinite(total + other).all()
    gap = ((total - other).abs() / total).max()
    possible, gap, padded = torch.stack([possible, gap, (rows == 0).any() | (cols == 0).any()]).tolist()
    if not possible:
        raise ValueError("row_mass and col_mass must be finite, not negative, and not all zero in any problem")
    if not gap < 1e-4:
        raise ValueError(f"row_mass and col_mass differ in their totals by a factor of up to {1 + gap:.5g}")
    return bool(padded)


def _fill_padding(cost: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
    """cost (problems, R, K) with a real entry of the same problem wherever there is no mass."""
    problem = torch.arange(len(cost), device=cost.device)
    entry = cost[problem, rows.argmax(-1), cols.argmax(-1)].view(-1, 1, 1)
    return torch.where((rows > 0).unsqueeze(-1) & (cols > 0).unsqueeze(-2), cost, entry)
