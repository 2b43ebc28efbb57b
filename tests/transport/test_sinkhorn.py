"""The solver against POT, plain loops and its own definition."""

import logging

import ot
import pytest
import torch
from plain_loops import sinkhorn_loop

from transport import sinkhorn as module
from transport.sinkhorn import sinkhorn, transport_cost, uniform_mass

TIGHT = {"max_iter": 20_000, "threshold": 1e-6}


def masses(rng, *shape):
    mass = torch.rand(*shape, generator=rng) + 0.05
    return mass / mass.sum(-1, keepdim=True)


def pot(cost, rows, cols, reg):
    """Converged plan of one problem in float64."""
    rows, cols = (x.double() / x.double().sum() for x in (rows, cols))
    arrays = [x.numpy() for x in (rows, cols, cost.double())]
    return torch.from_numpy(ot.bregman.sinkhorn_log(*arrays, reg, numItermax=20_000, stopThr=1e-9))


def problem(kind, rng):
    """cost (R, K), row masses, column masses."""
    if kind == "random":
        return torch.rand(30, 7, generator=rng), masses(rng, 30), masses(rng, 7)
    if kind == "wide":
        return torch.rand(3, 40, generator=rng), masses(rng, 3), masses(rng, 40)
    if kind == "equal rows":
        return torch.rand(1, 9, generator=rng).expand(12, 9), masses(rng, 12), masses(rng, 9)
    if kind == "one-hot":
        return 1 - torch.eye(8), torch.full((8,), 1 / 8), torch.full((8,), 1 / 8)
    if kind == "one-hot, unequal masses":
        return 1 - torch.eye(8), masses(rng, 8), masses(rng, 8)
    if kind == "constant":
        return torch.full((6, 4), 0.7), masses(rng, 6), masses(rng, 4)
    if kind == "single column":
        return torch.rand(5, 1, generator=rng), masses(rng, 5), torch.ones(1)
    assert kind == "full range"
    return 2 * torch.rand(20, 10, generator=rng), masses(rng, 20), masses(rng, 10)


KINDS = [
    "random", "wide", "equal rows", "one-hot", "one-hot, unequal masses", "constant", "single column", "full range",
]  # fmt: skip


@pytest.mark.parametrize("reg", [0.1, 0.01])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_pot(kind, reg, rng):
    cost, rows, cols = problem(kind, rng)
    found = sinkhorn(cost, rows, cols, reg, **TIGHT)
    assert found.plan.dtype == torch.float32
    torch.testing.assert_close(found.plan.double(), pot(cost, rows, cols, reg), atol=2e-6, rtol=0)


@pytest.mark.parametrize("stop", ["marginal", "scaling_change"])
def test_marginals_and_reported_error(stop, rng):
    cost, rows, cols = torch.rand(3, 4, 12, 5, generator=rng), masses(rng, 3, 4, 12), masses(rng, 5)
    found = sinkhorn(cost, rows, cols, 0.1, threshold=1e-3, stop=stop)
    assert found.plan.shape == cost.shape
    assert found.iterations.shape == found.error.shape == (3, 4)
    assert (found.plan >= 0).all()
    torch.testing.assert_close(found.plan.sum(-2), cols.expand(3, 4, 5), atol=1e-6, rtol=0)
    error = (found.plan.sum(-1) - rows).abs().sum(-1)
    torch.testing.assert_close(found.error, error, atol=1e-6, rtol=0)
    if stop == "marginal":
        assert (error <= 1e-3 + 1e-6).all()
        assert (found.iterations > 1).all()


def test_swapped_marginals_are_another_plan(rng):
    cost, rows, cols = torch.rand(6, 6, generator=rng), masses(rng, 6), masses(rng, 6)
    right, wrong = sinkhorn(cost, rows, cols).plan, sinkhorn(cost, cols, rows).plan
    assert (right - wrong).abs().max() > 1e-3


def mixed_batch(rng):
    """Problems that are easy, slow, and too wide for scalings at reg 0.01, in float32."""
    cost = torch.rand(4, 6, 20, 7, generator=rng) * torch.tensor([0.02, 0.2, 0.35, 2.0]).view(4, 1, 1, 1)
    return cost, masses(rng, 4, 6, 20), masses(rng, 4, 6, 7)


@pytest.mark.parametrize("reg", [0.1, 0.01])
def test_a_problem_does_not_depend_on_its_companions(reg, rng):
    cost, rows, cols = mixed_batch(rng)
    batch = sinkhorn(cost, rows, cols, reg, max_iter=300)
    for k in range(4):
        for i in range(6):
            alone = sinkhorn(cost[k, i], rows[k, i], cols[k, i], reg, max_iter=300)
            assert alone.iterations == batch.iterations[k, i]
            torch.testing.assert_close(alone.plan, batch.plan[k, i], atol=1e-6, rtol=0)
    assert batch.iterations.min() * 4 < batch.iterations.max()


def test_converged_problems_are_frozen(rng):
    """Without freezing, the easy problem would be iterated on and come closer to its marginals."""
    cost = torch.stack([0.05 * torch.rand(9, 5, generator=rng), torch.rand(9, 5, generator=rng)])
    rows, cols = masses(rng, 9), masses(rng, 5)
    alone = sinkhorn(cost[0], rows, cols, threshold=1e-2)
    both = sinkhorn(cost, rows, cols, threshold=1e-2)
    assert both.iterations[0] < both.iterations[1]
    assert both.error[0] == alone.error > 1e-6


@pytest.mark.parametrize("stop", ["marginal", "scaling_change"])
def test_blocks_change_nothing(stop, rng, monkeypatch):
    cost, rows, cols = mixed_batch(rng)
    whole = sinkhorn(cost, rows, cols, stop=stop, group=1 if stop == "marginal" else 3)
    monkeypatch.setattr(module, "CPU_BUDGET", 1)
    parts = sinkhorn(cost, rows, cols, stop=stop, group=1 if stop == "marginal" else 3)
    for one, other in zip(whole, parts):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("span", [0.3, 2.0])
def test_float32_is_stable_at_small_reg(span, rng):
    """span / reg = 30 is solved with scalings, 200 in the log domain."""
    cost, rows, cols = span * torch.rand(3, 40, 12, generator=rng), masses(rng, 3, 40), masses(rng, 12)
    single = sinkhorn(cost, rows, cols, 0.01, max_iter=500)
    double = sinkhorn(cost.double(), rows, cols, 0.01, max_iter=500)
    assert double.plan.dtype == torch.float64
    torch.testing.assert_close(single.plan.double(), double.plan, atol=3e-5, rtol=0)
    reference = sinkhorn_loop(cost.double(), rows.double(), cols.double().expand(3, 12), 0.01, 20_000, 1e-9, "marginal")
    tight = sinkhorn(cost, rows, cols, 0.01, **TIGHT)
    torch.testing.assert_close(tight.plan.double(), reference, atol=1e-5, rtol=0)


def test_both_domains_agree(rng):
    cost, rows, cols = 3 * torch.rand(12, 5, 20, generator=rng), masses(rng, 12, 20), masses(rng, 12, 5)
    rule, shift = module.make_rule("marginal", 1e-5, 1000, 0.1), torch.zeros(12)
    scalings, logarithms = (module._iterate(-10 * cost, rows, cols, shift, rule, 1, choice) for choice in (False, True))
    assert (scalings.iterations - logarithms.iterations).abs().max() <= 1
    torch.testing.assert_close(scalings.plan, logarithms.plan, atol=1e-5, rtol=0)
    expected = (scalings.log_rows.unsqueeze(1) + scalings.log_cols.unsqueeze(-1) - 10 * cost).exp()
    torch.testing.assert_close(scalings.plan, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("level", "span", "reg"),
    [(3e38, 0.0, 0.1), (0.0, 3e38, 0.1), (1e30, 1e30, 0.1), (0.0, 1.0, 1e-45), (1.0, 0.0, 1e-45), (0.0, 1.01, 1e-8)],
)
def test_costs_out_of_range_are_an_error_and_not_a_number(level, span, reg, rng):
    cost, rows, cols = torch.rand(3, 8, 4, generator=rng), masses(rng, 8), masses(rng, 4)
    cost[:, 0, 0], cost[:, 1, 1] = 0, 1
    with pytest.raises(ValueError, match=r"reg is .*e-|reg is 0.1.*expected a span of at most 1e\+08 \* reg"):
        sinkhorn(level + span * cost, rows, cols, reg)


@pytest.mark.parametrize("stop", ["marginal", "scaling_change"])
def test_columns_are_exact_up_to_the_widest_span(stop, rng):
    """In float32 the exponents alone would be off by 6 there."""
    cost, rows, cols = torch.rand(3, 8, 4, generator=rng), masses(rng, 8), masses(rng, 4)
    found = sinkhorn(cost, rows, cols, 1.01e-8, max_iter=20, stop=stop)
    torch.testing.assert_close(found.plan.sum(-2), cols.expand(3, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(found.plan.sum(-1).sub(rows).abs().sum(-1), found.error, atol=1e-5, rtol=0)


def slope(function, x, direction, step):
    """Two-sided difference of fourth order."""
    near, far = (function(x + k * step * direction) - function(x - k * step * direction) for k in (1, 2))
    return (8 * near - far) / (12 * step)


@pytest.mark.parametrize("gradient", ["constant", "regularized", "implicit"])
@pytest.mark.parametrize(("reg", "padding"), [(0.1, 0), (0.5, 3)])
def test_gradients_by_finite_differences(gradient, reg, padding, rng):
    """Constant plans fail for the value <T, C>; that is why the other two exist."""
    cost, direction = (torch.rand(4, 9, 5, generator=rng, dtype=torch.float64) for _ in range(2))
    rows, cols = masses(rng, 9).double(), masses(rng, 5 - padding).double()
    rows, cols = rows / rows.sum(), torch.cat([cols / cols.sum(), cols.new_zeros(padding)])

    def value(cost):
        plan = sinkhorn(cost, rows, cols, reg, 100_000, 1e-13).plan
        return transport_cost(cost, plan, reg, gradient).sum()

    cost.requires_grad_()
    (grad,) = torch.autograd.grad(value(cost), cost)
    expected = slope(value, cost.detach(), direction, 1e-3)
    error = abs(float((grad * direction).sum() - expected)) / abs(float(expected))
    assert error > 1e-3 if gradient == "constant" else error < 1e-7
    assert (grad[..., 5 - padding :] == 0).all()


def test_regularized_value_is_what_the_plan_minimizes(rng):
    """By its definition, and no other plan with these marginals has less."""
    cost, rows, cols = torch.rand(6, 4, generator=rng, dtype=torch.float64), masses(rng, 6), masses(rng, 4)
    rows, cols = rows.double() / rows.double().sum(), cols.double() / cols.double().sum()

    def value(plan):
        return (plan * cost).sum() + 0.1 * (plan * (plan / (plan.sum(1)[:, None] * plan.sum(0))).log()).sum()

    best = sinkhorn(cost, rows, cols, 0.1, 10_000, 1e-12).plan
    torch.testing.assert_close(transport_cost(cost, best, 0.1, "regularized"), value(best))
    for _ in range(5):
        move = torch.randn(6, 4, generator=rng, dtype=torch.float64)
        move = move - move.mean(0) - move.mean(1)[:, None] + move.mean()
        assert value(best + 1e-5 * move) > value(best)
    product = rows[:, None] * cols
    torch.testing.assert_close(transport_cost(cost, product, 0.1, "regularized"), (product * cost).sum())


@pytest.mark.parametrize("stop", ["marginal", "scaling_change"])
@pytest.mark.parametrize("reg", [0.1, 0.01])
@pytest.mark.parametrize("garbage", [0.5, 1e30, float("nan"), float("-inf")])
def test_padding_carries_no_mass(stop, reg, garbage, rng):
    cost, rows, cols = torch.rand(2, 9, 5, generator=rng), masses(rng, 2, 9), masses(rng, 2, 5)
    padded = torch.full((2, 12, 8), garbage)
    padded[:, 1:10, [0, 1, 3, 4, 7]] = cost
    more_rows, more_cols = torch.zeros(2, 12), torch.zeros(2, 8)
    more_rows[:, 1:10], more_cols[:, [0, 1, 3, 4, 7]] = rows, cols
    padded.requires_grad_()
    found = sinkhorn(padded, more_rows, more_cols, reg, stop=stop)
    plain = sinkhorn(cost, rows, cols, reg, stop=stop)
    inside = found.plan[:, 1:10, [0, 1, 3, 4, 7]]
    torch.testing.assert_close(inside, plain.plan, atol=1e-6, rtol=0)
    assert (found.plan != 0).sum() == (inside != 0).sum()
    assert found.iterations.equal(plain.iterations)
    assert not found.plan.requires_grad
    if garbage == 0.5:
        (found.plan * padded).sum().backward()
        assert padded.grad.equal(found.plan)


def test_released_rule_and_its_groups(rng):
    """Stops on the mean change of r over the group, exactly as a plain loop does."""
    cost = torch.rand(6, 15, 4, generator=rng, dtype=torch.float64) * torch.linspace(0.1, 2, 6).view(6, 1, 1)
    rows, cols = cost.new_full((6, 15), 1 / 15), cost.new_full((6, 4), 1 / 4)
    plans = {}
    for group in (1, 3, None):
        found = sinkhorn(cost, rows, cols, 0.1, threshold=1e-2, stop="scaling_change", group=group)
        size = 6 if group is None else group
        parts = zip(cost.split(size), rows.split(size), cols.split(size))
        expected = torch.cat([sinkhorn_loop(*part, 0.1, 100, 1e-2, "scaling_change") for part in parts])
        torch.testing.assert_close(found.plan, expected, atol=1e-12, rtol=0)
        assert all(len(set(part.tolist())) == 1 for part in found.iterations.split(size))
        plans[group] = found.plan
    assert not torch.allclose(plans[1], plans[3])
    assert not torch.allclose(plans[3], plans[None])


def test_released_rule_reads_the_true_scale_of_r(rng):
    """A constant added to the cost leaves the plan of a step alone, but scales r, and so moves the stop."""
    cost, mass = torch.rand(2, 10, 4, generator=rng), (torch.full((2, 10), 0.1), torch.full((2, 4), 0.25))
    low, high = (sinkhorn(cost + extra, *mass, stop="scaling_change") for extra in (0.0, 1.0))
    assert (low.iterations < high.iterations).all()
    wide = 3 * cost - 1.5  # float32 takes the log domain for it
    found = sinkhorn(wide, *mass, reg=0.05, stop="scaling_change", threshold=100, group=None)
    expected = sinkhorn_loop(*(x.double() for x in (wide, *mass)), 0.05, 100, 100, "scaling_change")
    assert 1 < found.iterations[0] < 100
    torch.testing.assert_close(found.plan.double(), expected, atol=1e-5, rtol=0)


def test_half_precision_is_raised(rng):
    cost, rows, cols = torch.rand(5, 4, generator=rng).half(), masses(rng, 5).half(), masses(rng, 4)
    found = sinkhorn(cost, rows, cols)
    assert found.plan.dtype == torch.float32
    torch.testing.assert_close(found.plan, sinkhorn(cost.float(), rows.float(), cols).plan)


def test_lack_of_convergence_is_logged_once(rng, caplog, monkeypatch):
    monkeypatch.setattr(module, "_reported", set())
    cost, rows, cols = torch.rand(3, 8, 8, generator=rng), masses(rng, 8), masses(rng, 8)
    with caplog.at_level(logging.WARNING, logger=module.__name__):
        found = sinkhorn(cost, rows, cols, 0.01, max_iter=2)
        sinkhorn(cost, rows, cols, 0.01, max_iter=2)
        sinkhorn(cost, rows, cols, 1.0)
    assert (found.iterations == 2).all()
    assert (found.error > 1e-3).all()
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "3 of 3 problems" in message
    assert f"{found.error.max().item():.2g}" in message


def test_a_cost_that_is_not_finite_is_an_error(rng):
    cost, rows, cols = torch.rand(5, 8, 4, generator=rng), masses(rng, 8), masses(rng, 4)
    cost[1, 2, 3] = cost[1, 0, 0] = float("nan")
    cost[3, 2, 3] = float("inf")
    with pytest.raises(FloatingPointError, match=r"3 of 160 entries \(2 problems\)"):
        sinkhorn(cost, rows, cols)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stop": "never"}, "'never', expected one of marginal, scaling_change"),
        ({"reg": 0.0}, "reg is 0.0"),
        ({"reg": float("nan")}, "reg is nan"),
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"max_iter": 0}, "max_iter is 0"),
        ({"group": 2}, "every problem stops by itself"),
        ({"group": 4, "stop": "scaling_change"}, "a divisor of the 6 problems"),
        ({"group": 0, "stop": "scaling_change"}, "a divisor of the 6 problems"),
        ({"cost": torch.zeros(3)}, r"shape \(3,\)"),
        ({"cost": torch.zeros(0, 8, 4)}, "at least one problem"),
        (
            {"row_mass": torch.full((7,), 1 / 7)},
            r"row_mass has shape \(7,\), expected one broadcastable to \(2, 3, 8\)",
        ),
        ({"row_mass": torch.full((8,), 1 / 4)}, "differ in their totals"),
        ({"row_mass": torch.zeros(8)}, "not all zero"),
        ({"row_mass": torch.tensor([1.5, -0.5, 0, 0, 0, 0, 0, 0])}, "not negative"),
        ({"col_mass": torch.tensor([float("nan"), 0.5, 0.5, 0])}, "finite"),
    ],
)
def test_bad_arguments(change, message, rng):
    options = {"cost": torch.rand(2, 3, 8, 4, generator=rng), "row_mass": masses(rng, 8), "col_mass": masses(rng, 4)}
    with pytest.raises(ValueError, match=message):
        sinkhorn(**options | change)


def test_uniform_mass():
    mask = torch.tensor([[True, False, True, False], [True, True, True, True]])
    assert uniform_mass(mask).tolist() == [[0.5, 0, 0.5, 0], [0.25] * 4]
    with pytest.raises(ValueError, match="1 of 2 sets"):
        uniform_mass(torch.tensor([[True], [False]]))
    with pytest.raises(ValueError, match=r"expected torch\.bool"):
        uniform_mass(mask.float())


@pytest.mark.gpu
def test_on_a_gpu(rng):
    cost, rows, cols = mixed_batch(rng)
    for stop in ("marginal", "scaling_change"):
        cpu = sinkhorn(cost, rows, cols, 0.05, stop=stop)
        gpu = sinkhorn(*(x.cuda() for x in (cost, rows, cols)), 0.05, stop=stop)
        torch.testing.assert_close(cpu.plan, gpu.plan.cpu(), atol=1e-5, rtol=0)
