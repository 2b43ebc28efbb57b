"""ALIGN's score against plain loops over images and classes, and its gradient against autograd and differences."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from tests.transport.plain_loops import align_loop
from trainers.align import align_logits
from transport.sinkhorn import WORKSPACES, sinkhorn

B, C, M, N, J, L, E = 3, 5, 3, 2, 11, 6, 16
NAMES = ("x", "r", "y", "s")
SCALE = 20.0
RULES = {"paper": {"stop": "marginal", "threshold": 1e-3}, "released": {"stop": "scaling_change", "threshold": 1e-2}}
PAIR = WORKSPACES * M * N * J * L * 8  # bytes of work space for one image and one class in float64
BUDGETS = [1, 4 * PAIR, 7 * PAIR, None]


def features(rng, dtype=torch.float64, m=M, n=N):
    """Features whose similarities spread widely, so that plans are far from uniform, as arguments of align_logits."""
    base = torch.randn(4, E, generator=rng, dtype=torch.float64)
    shapes = ((B, m), (B, m, J), (C, n), (C, n, L))
    values = [
        torch.randn(*shape, 4, generator=rng, dtype=torch.float64) @ base
        + torch.randn(*shape, E, generator=rng, dtype=torch.float64)
        for shape in shapes
    ]
    mask = torch.rand(C, n, L, generator=rng) < 0.6
    mask[..., 1] = True
    mask[..., L - 1] = False
    leaves = {name: value.to(dtype).requires_grad_() for name, value in zip(NAMES, values)}
    return leaves | {"mask": mask, "scale": SCALE}


def gradients(scores, arguments):
    """Gradient of the cross-entropy of the scores for each of the four features; zeros where there is none."""
    loss = cross_entropy(scores, torch.arange(B))
    leaves = [arguments[name] for name in NAMES]
    found = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found)]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("mode", ["paper", "released"])
def test_scores_and_gradients_are_those_of_the_double_loop(mode, budget, rng):
    arguments = features(rng)
    found = align_logits(fast=True, **arguments, mode=mode, beta=0.7, budget_bytes=budget)
    scores, plan, _ = align_loop(**arguments, mode=mode, beta=0.7, **RULES[mode])
    torch.testing.assert_close(found.logits, scores, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.prompt_plan, plan, atol=1e-12, rtol=0)
    for one, other in zip(gradients(found.logits, arguments), gradients(scores, arguments)):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", ["paper", "released"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 4), (4, 1)])
def test_other_numbers_of_modes(mode, m, n, rng):
    arguments = features(rng, m=m, n=n)
    found = align_logits(fast=True, **arguments, mode=mode)
    scores, _, _ = align_loop(**arguments, mode=mode, **RULES[mode])
    torch.testing.assert_close(found.logits, scores, atol=1e-10, rtol=0)
    if m * n == 1:
        assert found.prompt_entropy == 1
        cosine = normalize(arguments["x"], dim=-1)[:, 0] @ normalize(arguments["y"], dim=-1)[:, 0].T
        assert torch.allclose(found.logits, SCALE * cosine) == (mode == "released")


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_float32_and_half_precision(mode, rng):
    arguments = features(rng)
    exact = align_logits(fast=True, **arguments, mode=mode).logits
    for dtype, tolerance in ((torch.float32, 2e-3), (torch.bfloat16, 1.0)):
        rounded = {k: v.detach().to(dtype).requires_grad_() if k in NAMES else v for k, v in arguments.items()}
        found = align_logits(fast=True, **rounded, mode=mode)
        assert found.logits.dtype == found.prompt_plan.dtype == torch.float32
        torch.testing.assert_close(found.logits.double(), exact, atol=tolerance, rtol=0)
        raised = {k: v.float() if k in NAMES else v for k, v in rounded.items()}
        torch.testing.assert_close(found.logits, align_logits(fast=True, **raised, mode=mode).logits)
        assert all(grad.dtype == dtype for grad in gradients(found.logits, rounded))


def test_autocast_changes_nothing(rng):
    arguments = features(rng, torch.float32)
    plain = align_logits(fast=True, **arguments)
    expected = gradients(plain.logits, arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = align_logits(fast=True, **arguments)
    assert found.logits.equal(plain.logits)
    assert all(one.equal(other) for one, other in zip(gradients(found.logits, arguments), expected))


def frozen_score(arguments, token_plans, plan):
    """The paper's scores for given plans (B, C, M, N, J, L) and (B, C, M, N)."""
    x, r, y, s = (normalize(arguments[name], dim=-1) for name in NAMES)
    tokens = 1 - torch.einsum("bmje,cnle->bcmnjl", r, s)
    cost = 1 - torch.einsum("bme,cne->bcmn", x, y) + (token_plans * tokens).sum((-2, -1))
    return SCALE * (1 - (plan * cost).sum((-2, -1)))


def plans_of(arguments):
    r, s = (normalize(arguments[name].detach(), dim=-1) for name in ("r", "s"))
    cost = 1 - torch.einsum("bmje,cnle->bcmnjl", r, s)
    mask = arguments["mask"].double()
    cols = (mask / mask.sum(-1, keepdim=True)).view(1, C, 1, N, L)
    return sinkhorn(cost, cost.new_full((J,), 1 / J), cols).plan


@pytest.mark.parametrize("name", NAMES)
def test_gradient_by_finite_differences(name, rng):
    arguments = features(rng)
    found = align_logits(fast=True, **arguments)
    token_plans, plan = plans_of(arguments), found.prompt_plan
    torch.testing.assert_close(frozen_score(arguments, token_plans, plan), found.logits, atol=1e-9, rtol=0)
    grad = gradients(found.logits, arguments)[NAMES.index(name)]
    direction = torch.randn(grad.shape, generator=rng, dtype=grad.dtype)
    losses = []
    for step in (1e-5, -1e-5):
        moved = arguments | {name: arguments[name].detach() + step * direction}
        losses.append(cross_entropy(frozen_score(moved, token_plans, plan), torch.arange(B)))
    slope = (losses[0] - losses[1]) / 2e-5
    assert abs(slope) > 1e-3
    torch.testing.assert_close((grad * direction).sum(), slope, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("gradient", ["regularized", "implicit"])
def test_exact_gradients_by_finite_differences(gradient, rng):
    """Of the whole score, both levels in turn, sets of unequal size, some images and classes at a time."""
    arguments = features(rng)
    options = {"gradient": gradient, "beta": 0.7, "max_iter": 100_000, "threshold": 1e-13}

    def loss(moved):
        return cross_entropy(align_logits(fast=True, **moved, **options, budget_bytes=4 * PAIR).logits, torch.arange(B))

    directions = {name: torch.randn(arguments[name].shape, generator=rng, dtype=torch.float64) for name in NAMES}
    grads = torch.autograd.grad(loss(arguments), [arguments[name] for name in NAMES])
    found = sum(float((grad * directions[name]).sum()) for grad, name in zip(grads, NAMES))
    values = {
        k: float(loss(arguments | {name: arguments[name].detach() + k * 2e-4 * directions[name] for name in NAMES}))
        for k in (-2, -1, 1, 2)
    }
    expected = (8 * (values[1] - values[-1]) - (values[2] - values[-2])) / (12 * 2e-4)
    assert abs(expected) > 0.1
    assert found == pytest.approx(expected, rel=1e-6)
    options["gradient"] = "constant"
    constant = torch.autograd.grad(loss(arguments), [arguments[name] for name in NAMES])
    wrong = sum(float((grad * directions[name]).sum()) for grad, name in zip(constant, NAMES))
    assert wrong != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("mode", ["paper", "released"])
@pytest.mark.parametrize("budget", BUDGETS)
def test_work_space_changes_nothing(mode, budget, rng):
    arguments = features(rng, torch.float32)
    whole, parts = (align_logits(fast=True, **arguments, mode=mode, budget_bytes=b) for b in (1 << 40, budget))
    for one, other in zip(whole, parts):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients(whole.logits, arguments), gradients(parts.logits, arguments)):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_companions_change_nothing(rng):
    """Any subset of the images and classes of a call has the logits it has alone."""
    arguments = features(rng, torch.float32)
    whole = align_logits(fast=True, **arguments)
    some, classes = [2, 0], [4, 1, 2]
    part = {k: v[some] if k in ("x", "r") else v[classes] for k, v in arguments.items() if k != "scale"}
    found = align_logits(fast=True, **part, scale=SCALE)
    torch.testing.assert_close(found.logits, whole.logits[some][:, classes], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.prompt_plan, whole.prompt_plan[some][:, classes], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_tokens_outside_the_mask_do_not_exist(mode, rng):
    arguments = features(rng)
    found = align_logits(fast=True, **arguments, mode=mode)
    outside = ~arguments["mask"]
    changed = arguments["s"].detach().clone()
    changed[outside] = 50 * torch.randn(int(outside.sum()), E, generator=rng, dtype=changed.dtype)
    longer = torch.cat([changed, torch.randn(C, N, 4, E, generator=rng, dtype=changed.dtype)], 2).requires_grad_()
    mask = torch.cat([arguments["mask"], torch.zeros(C, N, 4, dtype=torch.bool)], 2)
    others = arguments | {"s": longer, "mask": mask}
    more = align_logits(fast=True, **others, mode=mode)
    torch.testing.assert_close(more.logits, found.logits, atol=1e-10, rtol=0)
    grad = gradients(more.logits, others)[3]
    assert (grad[~mask] == 0).all()
    assert (grad[mask].abs().sum() > 1e-3) == (mode == "paper")


def test_released_mode_learns_nothing_from_tokens(rng):
    """Its gradient is that of a constant token level of the same value, and differs from the paper's."""
    arguments = features(rng)
    found = align_logits(fast=True, **arguments, mode="released")
    x, y = (normalize(arguments[name], dim=-1) for name in ("x", "y"))
    similarity = torch.einsum("bme,cne->bcmn", x, y)
    _, _, distance = align_loop(**arguments, **RULES["released"])
    cost = 1 - similarity + (1 - distance.detach())
    modes = (cost.new_full((count,), 1 / count) for count in (M, N))
    plan = sinkhorn(cost, *modes, stop="scaling_change", group=None).plan
    constant = SCALE * (plan * similarity).sum((2, 3))
    torch.testing.assert_close(found.logits, constant, atol=1e-10, rtol=0)
    grads = gradients(found.logits, arguments)
    for one, other in zip(grads, gradients(constant, arguments)):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    assert not grads[1].any()
    assert not grads[3].any()
    assert all(grad.abs().max() > 1e-4 for grad in gradients(align_logits(fast=True, **arguments).logits, arguments))


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_uniform_plans(mode, rng):
    """Averages of cosines: closed form."""
    arguments = features(rng)
    found = align_logits(fast=True, **arguments, mode=mode, plan="uniform", beta=0.5)
    x, r, y, s = (normalize(arguments[name], dim=-1) for name in NAMES)
    mass = arguments["mask"].double() / arguments["mask"].double().sum(-1, keepdim=True)
    pooled = torch.einsum("bme,cne->bc", x, y) / (M * N)
    tokens = torch.einsum("bmje,cnle,cnl->bc", r, s, mass) / (M * N * J)
    expected = SCALE * (pooled - 0.5 * (1 - tokens) if mode == "paper" else pooled)
    torch.testing.assert_close(found.logits, expected)
    assert float(found.token_entropy) == 1
    assert float(found.prompt_entropy) == pytest.approx(1)
    assert found.iterations.tolist() == [0, 0]
    assert found.prompt_plan.unique().numel() == 1
    for one, other in zip(gradients(found.logits, arguments), gradients(expected, arguments)):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_no_token_level(rng):
    arguments = features(rng)
    paper = align_logits(fast=True, **arguments, beta=0.0).logits
    released = align_logits(fast=True, **arguments, beta=0.0, mode="released", stop="marginal").logits
    torch.testing.assert_close(paper, released)


def test_entropy_and_iterations(rng):
    arguments = features(rng, torch.float32)
    found = align_logits(fast=True, **arguments, threshold=1e-6, max_iter=1000)
    exact = {k: v.detach().double() if k in NAMES else v for k, v in arguments.items()}
    token = torch.special.entr(plans_of(exact)).sum((-2, -1))
    token = token / (math.log(J) + arguments["mask"].sum(-1).log().view(1, C, 1, N))
    torch.testing.assert_close(found.token_entropy.double(), token.mean(), atol=1e-3, rtol=0)
    prompt = torch.special.entr(found.prompt_plan).sum((-2, -1)) / math.log(M * N)
    torch.testing.assert_close(found.prompt_entropy, prompt.mean())
    assert 0.3 < found.token_entropy < 0.99
    assert (found.iterations > 1).all()
    smooth, sharp = (align_logits(fast=True, **arguments, reg=reg, max_iter=1000) for reg in (10.0, 0.02))
    assert sharp.token_entropy < found.token_entropy < smooth.token_entropy < 1
    assert sharp.prompt_entropy < found.prompt_entropy < smooth.prompt_entropy < 1
    assert smooth.token_entropy > 0.999


def test_deliberate_mistakes_show(rng):
    """A wrong sign of the token term, tokens of another mode, or a gradient through the plan would be noticed."""
    arguments = features(rng)
    right = align_logits(fast=True, **arguments)
    scores = {
        "sign": align_logits(fast=True, **arguments, beta=-1.0).logits,
        "modes": align_logits(fast=True, **arguments | {"r": arguments["r"].roll(1, 1)}).logits,
        "tokens": align_logits(fast=True, **arguments | {"s": arguments["s"].roll(1, 2)}).logits,
        "mode": align_logits(fast=True, **arguments, mode="released").logits,
    }
    assert all((right.logits - wrong).abs().max() > 1e-2 for wrong in scores.values())

    x, y = (normalize(arguments[name], dim=-1) for name in ("x", "y"))
    cost = 1 - torch.einsum("bme,cne->bcmn", x, y)
    r, c = torch.ones(B, C, M).double(), torch.ones(B, C, N).double()
    kernel = (-cost / 0.1).exp()
    for _ in range(100):
        r = 1 / M / (kernel @ c.unsqueeze(-1)).squeeze(-1)
        c = 1 / N / (r.unsqueeze(-2) @ kernel).squeeze(-2)
    through = SCALE * (1 - (r.unsqueeze(-1) * kernel * c.unsqueeze(-2) * cost).sum((2, 3)))
    ours = align_logits(fast=True, **arguments, beta=0.0, threshold=1e-10, max_iter=1000).logits
    torch.testing.assert_close(ours, through, atol=1e-6, rtol=0)
    mine, theirs = gradients(ours, arguments)[0], gradients(through, arguments)[0]
    assert (mine - theirs).abs().max() > 1e-3


def test_no_similarities_are_kept_for_the_backward_pass(rng):
    arguments = features(rng)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        align_logits(fast=True, **arguments)
    features_alone = sum(arguments[name].numel() for name in NAMES)
    assert max(kept) < B * C * M * N * J * L / 3
    assert features_alone < sum(kept) < 8 * features_alone


def test_evaluation_has_no_graph(rng):
    arguments = features(rng, torch.float32)
    with torch.no_grad():
        found = align_logits(fast=True, **arguments)
    with torch.inference_mode():
        again = align_logits(fast=True, **arguments)
    assert not found.logits.requires_grad
    assert not align_logits(fast=True, **arguments).prompt_plan.requires_grad
    assert found.logits.equal(again.logits)


@pytest.mark.parametrize("name", NAMES)
def test_features_that_are_not_finite(name, rng):
    arguments = features(rng)
    broken = arguments[name].detach().clone()
    broken.view(-1)[E] = float("nan")
    arguments["mask"][..., 0] = True
    with pytest.raises(FloatingPointError, match="not finite"):
        align_logits(fast=True, **arguments | {name: broken})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "both"}, "mode is 'both', expected one of paper, released"),
        ({"plan": "none"}, "plan is 'none', expected one of learned, uniform"),
        ({"stop": "now"}, "stop is 'now'"),
        ({"gradient": "exact"}, "gradient is 'exact', expected one of constant, regularized, implicit"),
        ({"gradient": "implicit", "mode": "released"}, "gradient is 'implicit', expected one of constant"),
        ({"budget_bytes": 0}, "budget_bytes is 0"),
        ({"r": torch.zeros(B, M + 1, J, E)}, r"r has shape .* M = 3"),
        ({"y": torch.zeros(C, N, E - 1)}, r"y has shape .* E = 16"),
        ({"s": torch.zeros(C, N, E)}, r"s has shape"),
        ({"mask": torch.ones(C, N, L - 1, dtype=torch.bool)}, r"mask has shape"),
        ({"x": torch.zeros(0, M, E)}, "without empty axes"),
        ({"mask": torch.zeros(C, N, L, dtype=torch.bool)}, "10 of 10 sets"),
        ({"mask": torch.ones(C, N, L)}, r"torch\.bool"),
    ],
)
def test_bad_arguments(change, message, rng):
    with pytest.raises(ValueError, match=message):
        align_logits(fast=True, **features(rng) | change)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["paper", "released"])
def test_on_a_gpu(mode, rng):
    arguments = features(rng, torch.float32)
    moved = {k: v.detach().cuda().requires_grad_() if k in NAMES else v for k, v in arguments.items()}
    moved["mask"] = moved["mask"].cuda()
    cpu, gpu = align_logits(fast=True, **arguments, mode=mode), align_logits(fast=True, **moved, mode=mode)
    torch.testing.assert_close(cpu.logits, gpu.logits.cpu(), atol=1e-4, rtol=0)
