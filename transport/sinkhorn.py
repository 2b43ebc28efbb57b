"""Entropic optimal transport: the one Sinkhorn of the project, for many small problems at once.

Cuturi, "Sinkhorn Distances: Lightspeed Computation of Optimal Transport", NeurIPS 2013.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from transport.arguments import check_choices, full_precision
from transport.unrolled import unrolled_plan

logger = logging.getLogger(__name__)

THRESHOLDS = {"marginal": 1e-3, "scaling_change": 1e-2}
"""Stop rules of `sinkhorn` and their default thresholds."""
GRADIENTS = ("constant", "regularized", "implicit")
"""Ways to differentiate `transport_cost`."""
WIDEST = 1e8  # largest span of the costs of a problem over reg
WORKSPACES = 3
"""Tensors of the size of the cost that a block of problems needs: cost, kernel, product."""
CPU_BUDGET, GPU_BUDGET = 12 << 20, 1 << 30  # bytes; on a CPU what stays in the cache
CHECK_EVERY = 10  # iterations between two looks at a device other than the CPU

_reported: set[Rule] = set()  # settings whose lack of convergence was logged, or looked for once on a device


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
    """Stop rule of the solver and weight of the entropy; see `sinkhorn`."""

    stop: str
    threshold: float
    max_iter: int
    reg: float


class Solution(NamedTuple):
    """Result of `solve` for P problems of X columns and Y rows: plan = exp(log_rows + log_cols - cost / reg)."""

    plan: Tensor  # (P, X, Y)
    log_rows: Tensor  # (P, Y), -inf where there is no mass
    log_cols: Tensor  # (P, X), -inf where there is no mass
    iterations: Tensor  # (P,)
    error: Tensor  # (P,)


def sinkhorn(
    cost: Tensor,
    row_mass: Tensor,
    col_mass: Tensor,
    reg: float = 0.1,
    max_iter: int = 100,
    threshold: float | None = None,
    stop: str = "marginal",
    group: int | None = 1,
    span: float = math.inf,
) -> Transport:
    """Plans T that minimise <T, cost> - reg * entropy(T) for given row and column sums, a batch of problems at once.

    One iteration fits the rows, then the columns. A problem that has met the stop rule is frozen, so its plan does not
    depend on the others of the batch (unless `group` says so). The plan is a constant: no gradient flows through it,
    see `transport_cost`. Half precision is raised to float32. Problems whose costs span less than 40 * reg (float32;
    320 * reg in float64) are solved with scalings of the kernel exp(-cost / reg), others in the log domain in float64:
    slower, and good up to a span of 1e8 * reg.

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
        span: largest difference of two costs of a problem, if it is known, such as 2 for cosines. Where it is small
            enough for scalings, nothing is read from a device, so that the host does not wait; costs that are not
            finite then give a plan of NaN.

    Returns:
        Transport(plan, iterations, error).

    Raises:
        ValueError: an option out of range, costs that span more than 1e8 * reg, shapes that do not fit, masses that are
            negative, empty or of unequal total.
        FloatingPointError: a cost that is not finite, with the number of such entries and problems.
    """
    rule = make_rule(stop, threshold, max_iter, reg)
    if torch.compiler.is_exporting():  # fixed iterations and uniform rows: a graph makes no decisions
        plan = unrolled_plan(full_precision(cost.detach()), col_mass, reg, max_iter)
        return Transport(plan, plan.new_zeros(plan.shape[:-2]), plan.new_zeros(plan.shape[:-2]))
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
    plan, iterations, error = torch.empty_like(cost), [], []
    for start in range(0, count, size):
        part = slice(start, start + size)
        found = solve(cost[part].transpose(1, 2), rows[part], cols[part], rule, group, span)
        plan[part] = found.plan.transpose(1, 2)
        iterations.append(found.iterations)
        error.append(found.error)
    plan = plan.reshape(*leading, height, width)
    return Transport(plan, torch.cat(iterations).reshape(leading), torch.cat(error).reshape(leading))


def transport_cost(cost: Tensor, plan: Tensor, reg: float, gradient: str = "constant") -> Tensor:
    """Cost of transport by the entropic plan T of `cost`, (...), with the chosen gradient.

    `constant`: <T, cost>, differentiated as if T were constant. The envelope theorem does not hold for this value, so
        the gradient T is an approximation of that of <T(cost), cost>: the one of ALIGN's and PLOT's released code.
    `regularized`: <T, cost> + reg * KL(T | product of its marginals) = <T, cost> - reg * entropy(T) + a constant of
        the marginals, so that sets of different sizes compare. This is what T minimises: its gradient is exactly T.
    `implicit`: <T, cost> with its exact gradient, from the implicit function theorem at Sinkhorn's fixed point:
        T * (1 - (cost - a - b) / reg), where a (rows) and b (columns) are the least-squares fit of the cost under T.

    Args:
        cost: (..., R, K).
        plan: (..., R, K) constant, as of `sinkhorn`; exact gradients need a converged one.
        reg: weight of the entropy that the plan was made with.
        gradient: see above.
    """
    if gradient == "implicit":
        with torch.no_grad():
            weight = implicit_gradient(plan.mT, -cost.detach().mT / reg).mT
        value, moved = (plan * cost.detach()).sum((-2, -1)), weight * (cost - cost.detach())
        return value + moved.sum((-2, -1))
    value = (plan * cost).sum((-2, -1))
    if gradient == "constant":
        return value
    joint, product = entropies(plan)
    return value + reg * (product - joint)


def entropies(plan: Tensor) -> tuple[Tensor, Tensor]:
    """Entropy of plans (..., R, K) and of the product of their marginals, which is at least that, both (...)."""
    joint, rows, cols = (torch.special.entr(x) for x in (plan, plan.sum(-1), plan.sum(-2)))
    return joint.sum((-2, -1)), rows.sum(-1) + cols.sum(-1)


def normalized(joint: Tensor, product: Tensor) -> Tensor:
    """Ratio of two entropies, in [0, 1]; 1 = the plan is the product of its marginals."""
    return torch.where(product > 1e-6, joint / product, 1)


def implicit_gradient(plan: Tensor, exponent: Tensor) -> Tensor:
    """Gradient (P..., X, Y) of <T(cost), cost>, see `transport_cost`; exponent = -cost / reg + any row or column terms.

    The least-squares fit a_y + b_x of the exponent under the weights T is a linear system in b, best the smaller side.
    """
    eps, tiny = torch.finfo(plan.dtype).eps, torch.finfo(plan.dtype).tiny
    weighted = plan * exponent
    cols, rows = plan.sum(-1), plan.sum(-2).clamp_min(tiny)  # (P..., X), (P..., Y)
    share, mean = plan / rows.unsqueeze(-2), weighted.sum(-2) / rows  # a without b
    system = torch.diag_embed(cols) - share @ plan.mT
    # b is free by a constant, and where there is no mass: both are held near 0
    system += cols.unsqueeze(-1) * cols.unsqueeze(-2) + torch.diag_embed(torch.where(cols > 0, 8 * eps * cols, 1))
    b = torch.linalg.solve(system, weighted.sum(-1) - (plan * mean.unsqueeze(-2)).sum(-1))
    a = mean - (share * b.unsqueeze(-1)).sum(-2)
    return plan * (1 + exponent - a.unsqueeze(-2) - b.unsqueeze(-1))


def uniform_mass(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Equal mass on the true entries of every row and none on the others; each row sums to 1.

    Args:
        mask: (..., K) bool.
        dtype: type of the masses.

    Returns:
        (..., K).

    Raises:
        ValueError: a row without any true entry (on a CPU), or a mask that is not bool.
    """
    if mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype}, expected torch.bool")
    count = mask.sum(-1, keepdim=True)
    read = mask.device.type == "cpu" and not torch.compiler.is_exporting()  # elsewhere NaN, without a wait
    if read and (empty := int((count == 0).sum())):
        raise ValueError(f"{empty} of {count.numel()} sets have no true entry in a mask of shape {tuple(mask.shape)}")
    return mask / count.to(dtype)


def make_rule(stop: str, threshold: float | None, max_iter: int, reg: float) -> Rule:
    """Checked options of `sinkhorn`; None = the rule's default threshold. Raises ValueError."""
    check_choices(stop=(stop, THRESHOLDS))
    threshold = THRESHOLDS[stop] if threshold is None else threshold
    if not (math.isfinite(reg) and reg > 0):
        raise ValueError(f"reg is {reg}, expected a finite number above 0")
    if not threshold > 0:
        raise ValueError(f"threshold is {threshold}, expected a number above 0")
    if max_iter < 1:
        raise ValueError(f"max_iter is {max_iter}, expected at least 1")
    return Rule(stop, float(threshold), int(max_iter), float(reg))


def workspace(budget_bytes: int | None, device: torch.device) -> int:
    """Bytes that a block of problems may take; None = by device."""
    if budget_bytes is not None:
        return budget_bytes
    return CPU_BUDGET if device.type == "cpu" else GPU_BUDGET


def solve(cost: Tensor, rows: Tensor, cols: Tensor, rule: Rule, group: int, largest_span: float = math.inf) -> Solution:
    """`sinkhorn` for P problems at once, without checks of shapes and masses.

    Args:
        cost: (..., X, Y) with P problems in the leading axes, any strides; rows, the longer side, come last.
        rows, cols: masses, broadcastable to (..., Y) and (..., X).
        rule: the stop rule.
        group: successive problems that stop together under `scaling_change`.
        largest_span: see `span` of `sinkhorn`.

    Raises:
        FloatingPointError: a cost that is not finite.
        ValueError: costs that span more than WIDEST * reg, or whose ratio to reg is not finite.
    """
    rows, cols = (x.expand(*cost.shape[:-2], -1).reshape(-1, x.shape[-1]) for x in (rows, cols))
    low, high = (x.flatten() for x in (cost.amin((-2, -1)), cost.amax((-2, -1))))  # (P,)
    span, shift = (high.double() - low.double()) / rule.reg, low / rule.reg
    limit = 0.455 * math.log(torch.finfo(cost.dtype).max)  # the logarithm of a scaling stays below twice the span
    if cost.device.type != "cpu" and largest_span / rule.reg < limit:
        return _iterate(_exponent(cost, low, rule.reg), rows, cols, shift, rule, group, False)
    hard = span > limit
    finite = torch.isfinite(low) & torch.isfinite(high)
    wide = finite & ~((span <= WIDEST) & torch.isfinite(shift))
    broken, far, many = torch.stack([(~finite).sum(), wide.sum(), hard.sum()]).tolist()
    if broken:
        entries = int((~torch.isfinite(cost)).sum())
        raise FloatingPointError(
            f"the transport cost is not finite in {entries} of {cost.numel()} entries ({broken} problems)"
        )
    if far:
        raise ValueError(
            f"reg is {rule.reg:g}, but the costs of {far} of {len(low)} problems span up to {float(span.max()):.3g} * "
            f"reg (level {float(shift.abs().max()):.3g} * reg): expected a span of at most {WIDEST:g} * reg. Raise "
            f"reg or scale the cost down"
        )
    exponent = _exponent(cost, low, rule.reg)
    if many in (0, len(low)) or rule.stop != "marginal":  # problems that stop together are solved together
        return _iterate(exponent, rows, cols, shift, rule, group, many > 0)
    whole = _iterate(exponent.masked_fill(hard[:, None, None], 0), rows, cols, shift, rule, group, False)
    part = _iterate(exponent[hard], rows[hard], cols[hard], shift[hard], rule, group, True)
    for target, value in zip(whole, part):
        target[hard] = value
    return whole


def _exponent(cost: Tensor, low: Tensor, reg: float) -> Tensor:
    """(low - cost) / reg as (P, X, Y), contiguous whatever the cost is."""
    low = low.view(*cost.shape[:-2], 1, 1)
    if torch.compiler.is_compiling():  # a compiled graph would give `out` the strides of the cost
        return ((low - cost) * (1 / reg)).reshape(-1, *cost.shape[-2:])
    exponent = torch.empty(cost.shape, dtype=cost.dtype, device=cost.device)
    torch.sub(low, cost, out=exponent).mul_(1 / reg)
    return exponent.view(-1, *cost.shape[-2:])


class _Signal:
    """True once a flag has become false, as far as the host knows without waiting for the device."""

    def __init__(self) -> None:
        self.sent: tuple[Tensor, torch.cuda.Event] | None = None

    def __call__(self, flag: Tensor) -> bool:
        if flag.device.type != "cuda":
            return not bool(flag)
        if self.sent is not None and self.sent[1].query():
            if not bool(self.sent[0]):
                return True
            self.sent = None
        if self.sent is None:
            known = torch.empty((), dtype=torch.bool, pin_memory=True)
            known.copy_(flag, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self.sent = known, event
        return False


def _iterate(
    exponent: Tensor, rows: Tensor, cols: Tensor, shift: Tensor, rule: Rule, group: int, logarithms: bool
) -> Solution:
    """Half steps until every problem has met the stop rule; those that have keep their scalings.

    The plan is diag(c) exp(exponent) diag(r), r (P, Y) fits the rows and c (P, X) the columns. With `logarithms` both
    are logarithms, in float64. Overwrites the exponent. The row sums that show the error are those that the next half
    step divides by anyway.
    """
    dtype, masses = exponent.dtype, rows
    divide: Callable[[Tensor, Tensor], Tensor]
    if logarithms:
        exponent, shift, masses = exponent.double(), shift.double(), rows.double()
        rows, cols = masses.log(), cols.double().log()
        c, divide = torch.where(cols.isneginf(), cols, 0), torch.sub

        def total(weight: Tensor, axis: int) -> Tensor:
            return (exponent + weight.unsqueeze(-axis)).logsumexp(axis)

        def times(r: Tensor, other: Tensor) -> Tensor:
            return (r + other).exp_()

        offset = shift.unsqueeze(-1)
    else:
        kernel, product = exponent.exp_(), torch.empty_like(exponent)
        c, divide = (cols > 0).to(dtype), torch.div

        def total(weight: Tensor, axis: int) -> Tensor:
            return torch.mul(kernel, weight.unsqueeze(-axis), out=product).sum(axis)

        def times(r: Tensor, other: Tensor) -> Tensor:
            return r * other

        offset = shift.exp().unsqueeze(-1)
    every = 1 if shift.device.type == "cpu" else CHECK_EVERY
    active = torch.ones(shift.shape, dtype=torch.bool, device=shift.device)
    iterations = torch.zeros(shift.shape, dtype=torch.int64, device=shift.device)
    previous = (masses > 0).to(masses.dtype)  # r = 1 at the start
    sums, all_stopped = total(c, 1), _Signal()
    r = divide(rows, sums)
    for step in range(1, rule.max_iter + 1):
        going = active.unsqueeze(-1)
        r = torch.where(going, divide(rows, sums), r)
        c = torch.where(going, divide(cols, total(r, 2)), c)
        iterations += active
        sums = total(c, 1)
        error = (times(r, sums) - masses).abs_().sum(-1)
        if rule.stop == "marginal":
            active = active & (error > rule.threshold)
        else:
            value = times(r, offset)  # with the kernel exp(-cost / reg)
            active = active & ~(_mean_change(value - previous, masses, group) < rule.threshold)
            previous = value
        if step % every == 0 and all_stopped(active.any()):
            break
    _report(active, error, rule)
    if logarithms:
        plan = (exponent + r.unsqueeze(1) + c.unsqueeze(-1)).exp_()
    else:
        plan = kernel.mul_(r.unsqueeze(1)).mul_(c.unsqueeze(-1))
        r, c = r.log(), c.log()
    log_rows = r + shift.unsqueeze(-1)
    return Solution(plan.to(dtype), log_rows.to(dtype), c.to(dtype), iterations, error.to(dtype))


def _mean_change(change: Tensor, rows: Tensor, group: int) -> Tensor:
    """Mean |change| (P, Y) over the rows that have mass and over the problem's group, for each problem: (P,)."""
    total = change.abs_().sum(-1).view(-1, group).sum(1)
    return (total / (rows > 0).sum(-1).view(-1, group).sum(1)).repeat_interleave(group)


def _report(active: Tensor, error: Tensor, rule: Rule) -> None:
    """Logs once per setting that problems did not meet their stop rule."""
    if rule in _reported:
        return
    if active.device.type != "cpu":
        _reported.add(rule)  # looked for in the first call alone, so that the host does not wait in every step
    if not bool(active.any()):
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
    """True if some mass may be zero; also checks that the masses are possible, on a CPU: elsewhere it would wait."""
    if rows.device.type != "cpu":
        return True
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
