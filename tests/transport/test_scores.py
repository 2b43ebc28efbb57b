"""ALIGN's score against plain loops over images and classes, and its gradient against autograd and differences."""

import math

import pytest
import torch
from plain_loops import align_loop
from torch.nn.functional import cross_entropy, normalize

from transport.scores import _parts, align_scores, plot_scores
from transport.sinkhorn import WORKSPACES, sinkhorn

B, C, M, N, J, L, E = 3, 5, 3, 2, 11, 6, 16
NAMES = ("image_pooled", "image_tokens", "text_pooled", "text_tokens")
SCALE = 20.0
RULES = {"paper": {"stop": "marginal", "threshold": 1e-3}, "released": {"stop": "scaling_change", "threshold": 1e-2}}
PAIR = WORKSPACES * M * N * J * L * 8  # bytes of work space for one image and one class in float64
BUDGETS = [1, 4 * PAIR, 7 * PAIR, None]


def features(rng, dtype=torch.float64, m=M, n=N):
    """Features whose similarities spread widely, so that plans are far from uniform, as arguments of align_scores."""
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
    return leaves | {"text_mask": mask, "scale": SCALE}


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
    found = align_scores(**arguments, mode=mode, beta=0.7, budget_bytes=budget)
    scores, plan, _ = align_loop(**arguments, mode=mode, beta=0.7, **RULES[mode])
    torch.testing.assert_close(found.scores, scores, atol=1e-10, rtol=0)
    torch.testing.assert_close(found.plan, plan, atol=1e-12, rtol=0)
    for one, other in zip(gradients(found.scores, arguments), gradients(scores, arguments)):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", ["paper", "released"])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 4), (4, 1)])
def test_other_numbers_of_modes(mode, m, n, rng):
    arguments = features(rng, m=m, n=n)
    found = align_scores(**arguments, mode=mode)
    scores, _, _ = align_loop(**arguments, mode=mode, **RULES[mode])
    torch.testing.assert_close(found.scores, scores, atol=1e-10, rtol=0)
    if m * n == 1:
        assert found.prompt_entropy == 1
        cosine = (
            normalize(arguments["image_pooled"], dim=-1)[:, 0] @ normalize(arguments["text_pooled"], dim=-1)[:, 0].T
        )
        assert torch.allclose(found.scores, SCALE * cosine) == (mode == "released")


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_float32_and_half_precision(mode, rng):
    arguments = features(rng)
    exact = align_scores(**arguments, mode=mode).scores
    for dtype, tolerance in ((torch.float32, 2e-3), (torch.bfloat16, 1.0)):
        rounded = {k: v.detach().to(dtype).requires_grad_() if k in NAMES else v for k, v in arguments.items()}
        found = align_scores(**rounded, mode=mode)
        assert found.scores.dtype == found.plan.dtype == torch.float32
        torch.testing.assert_close(found.scores.double(), exact, atol=tolerance, rtol=0)
        raised = {k: v.float() if k in NAMES else v for k, v in rounded.items()}
        torch.testing.assert_close(found.scores, align_scores(**raised, mode=mode).scores)
        assert all(grad.dtype == dtype for grad in gradients(found.scores, rounded))


def test_autocast_changes_nothing(rng):
    arguments = features(rng, torch.float32)
    plain = align_scores(**arguments)
    expected = gradients(plain.scores, arguments)
    with torch.autocast("cpu", torch.bfloat16):
        found = align_scores(**arguments)
    assert found.scores.equal(plain.scores)
    assert all(one.equal(other) for one, other in zip(gradients(found.scores, arguments), expected))


def frozen_score(arguments, token_plans, plan):
    """The paper's scores for given plans (B, C, M, N, J, L) and (B, C, M, N)."""
    x, r, y, s = (normalize(arguments[name], dim=-1) for name in NAMES)
    tokens = 1 - torch.einsum("bmje,cnle->bcmnjl", r, s)
    cost = 1 - torch.einsum("bme,cne->bcmn", x, y) + (token_plans * tokens).sum((-2, -1))
    return SCALE * (1 - (plan * cost).sum((-2, -1)))


def plans_of(arguments):
    r, s = (normalize(arguments[name].detach(), dim=-1) for name in ("image_tokens", "text_tokens"))
    cost = 1 - torch.einsum("bmje,cnle->bcmnjl", r, s)
    mask = arguments["text_mask"].double()
    cols = (mask / mask.sum(-1, keepdim=True)).view(1, C, 1, N, L)
    return sinkhorn(cost, cost.new_full((J,), 1 / J), cols).plan


@pytest.mark.parametrize("name", NAMES)
def test_gradient_by_finite_differences(name, rng):
    arguments = features(rng)
    found = align_scores(**arguments)
    token_plans, plan = plans_of(arguments), found.plan
    torch.testing.assert_close(frozen_score(arguments, token_plans, plan), found.scores, atol=1e-9, rtol=0)
    grad = gradients(found.scores, arguments)[NAMES.index(name)]
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
        return cross_entropy(align_scores(**moved, **options, budget_bytes=4 * PAIR).scores, torch.arange(B))

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
    whole, parts = (align_scores(**arguments, mode=mode, budget_bytes=b) for b in (1 << 40, budget))
    for one, other in zip(whole, parts):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients(whole.scores, arguments), gradients(parts.scores, arguments)):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)


def test_parts_cover_every_pair_once_within_the_budget():
    sizes = [1, 1, 2, 2, 2, 3, 7, 7, 9]
    for images, joint, budget in ((1, 1, 1), (5, 2, 10_000), (40, 1, 100_000), (3, 4, 1 << 30)):
        seen = torch.zeros(images, len(sizes))
        for some, many, length in _parts(images, sizes, joint, 100, budget):
            seen[some, many] += 1
            assert length == max(sizes[many])
            pairs = (some.stop - some.start) * (many.stop - many.start)
            assert pairs == 1 or WORKSPACES * joint * 100 * length * pairs <= budget
        assert (seen == 1).all()


def test_companions_change_nothing(rng):
    """Any subset of the images and classes of a call has the logits it has alone."""
    arguments = features(rng, torch.float32)
    whole = align_scores(**arguments)
    some, classes = [2, 0], [4, 1, 2]
    part = {k: v[some] if k.startswith("image") else v[classes] for k, v in arguments.items() if k != "scale"}
    found = align_scores(**part, scale=SCALE)
    torch.testing.assert_close(found.scores, whole.scores[some][:, classes], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.plan, whole.plan[some][:, classes], atol=1e-6, rtol=0)


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_tokens_outside_the_mask_do_not_exist(mode, rng):
    arguments = features(rng)
    found = align_scores(**arguments, mode=mode)
    outside = ~arguments["text_mask"]
    changed = arguments["text_tokens"].detach().clone()
    changed[outside] = 50 * torch.randn(int(outside.sum()), E, generator=rng, dtype=changed.dtype)
    longer = torch.cat([changed, torch.randn(C, N, 4, E, generator=rng, dtype=changed.dtype)], 2).requires_grad_()
    mask = torch.cat([arguments["text_mask"], torch.zeros(C, N, 4, dtype=torch.bool)], 2)
    others = arguments | {"text_tokens": longer, "text_mask": mask}
    more = align_scores(**others, mode=mode)
    torch.testing.assert_close(more.scores, found.scores, atol=1e-10, rtol=0)
    grad = gradients(more.scores, others)[3]
    assert (grad[~mask] == 0).all()
    assert (grad[mask].abs().sum() > 1e-3) == (mode == "paper")


def test_released_mode_learns_nothing_from_tokens(rng):
    """Its gradient is that of a constant token level of the same value, and differs from the paper's."""
    arguments = features(rng)
    found = align_scores(**arguments, mode="released")
    x, y = (normalize(arguments[name], dim=-1) for name in ("image_pooled", "text_pooled"))
    similarity = torch.einsum("bme,cne->bcmn", x, y)
    _, _, distance = align_loop(**arguments, **RULES["released"])
    cost = 1 - similarity + (1 - distance.detach())
    modes = (cost.new_full((count,), 1 / count) for count in (M, N))
    plan = sinkhorn(cost, *modes, stop="scaling_change", group=None).plan
    constant = SCALE * (plan * similarity).sum((2, 3))
    torch.testing.assert_close(found.scores, constant, atol=1e-10, rtol=0)
    grads = gradients(found.scores, arguments)
    for one, other in zip(grads, gradients(constant, arguments)):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    assert not grads[1].any()
    assert not grads[3].any()
    assert all(grad.abs().max() > 1e-4 for grad in gradients(align_scores(**arguments).scores, arguments))


@pytest.mark.parametrize("mode", ["paper", "released"])
def test_uniform_plans(mode, rng):
    """Averages of cosines: closed form."""
    arguments = features(rng)
    found = align_scores(**arguments, mode=mode, plan="uniform", beta=0.5)
    x, r, y, s = (normalize(arguments[name], dim=-1) for name in NAMES)
    mass = arguments["text_mask"].double() / arguments["text_mask"].double().sum(-1, keepdim=True)
    pooled = torch.einsum("bme,cne->bc", x, y) / (M * N)
    tokens = torch.einsum("bmje,cnle,cnl->bc", r, s, mass) / (M * N * J)
    expected = SCALE * (pooled - 0.5 * (1 - tokens) if mode == "paper" else pooled)
    torch.testing.assert_close(found.scores, expected)
    assert found.token_entropy == found.prompt_entropy == 1
    assert found.iterations.tolist() == [0, 0]
    assert found.plan.unique().numel() == 1
    for one, other in zip(gradients(found.scores, arguments), gradients(expected, arguments)):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_no_token_level(rng):
    arguments = features(rng)
    paper = align_scores(**arguments, beta=0.0).scores
    released = align_scores(**arguments, beta=0.0, mode="released", stop="marginal").scores
    torch.testing.assert_close(paper, released)


def test_entropy_and_iterations(rng):
    arguments = features(rng, torch.float32)
    found = align_scores(**arguments, threshold=1e-6, max_iter=1000)
    exact = {k: v.detach().double() if k in NAMES else v for k, v in arguments.items()}
    token = torch.special.entr(plans_of(exact)).sum((-2, -1))
    token = token / (math.log(J) + arguments["text_mask"].sum(-1).log().view(1, C, 1, N))
    torch.testing.assert_close(found.token_entropy.double(), token.mean(), atol=1e-3, rtol=0)
    prompt = torch.special.entr(found.plan).sum((-2, -1)) / math.log(M * N)
    torch.testing.assert_close(found.prompt_entropy, prompt.mean())
    assert 0.3 < found.token_entropy < 0.99
    assert (found.iterations > 1).all()
    smooth, sharp = (align_scores(**arguments, reg=reg, max_iter=1000) for reg in (10.0, 0.02))
    assert sharp.token_entropy < found.token_entropy < smooth.token_entropy < 1
    assert sharp.prompt_entropy < found.prompt_entropy < smooth.prompt_entropy < 1
    assert smooth.token_entropy > 0.999


def test_deliberate_mistakes_show(rng):
    """A wrong sign of the token term, tokens of another mode, or a gradient through the plan would be noticed."""
    arguments = features(rng)
    right = align_scores(**arguments)
    scores = {
        "sign": align_scores(**arguments, beta=-1.0).scores,
        "modes": align_scores(**arguments | {"image_tokens": arguments["image_tokens"].roll(1, 1)}).scores,
        "tokens": align_scores(**arguments | {"text_tokens": arguments["text_tokens"].roll(1, 2)}).scores,
        "mode": align_scores(**arguments, mode="released").scores,
    }
    assert all((right.scores - wrong).abs().max() > 1e-2 for wrong in scores.values())

    x, y = (normalize(arguments[name], dim=-1) for name in ("image_pooled", "text_pooled"))
    cost = 1 - torch.einsum("bme,cne->bcmn", x, y)
    r, c = torch.ones(B, C, M).double(), torch.ones(B, C, N).double()
    kernel = (-cost / 0.1).exp()
    for _ in range(100):
        r = 1 / M / (kernel @ c.unsqueeze(-1)).squeeze(-1)
        c = 1 / N / (r.unsqueeze(-2) @ kernel).squeeze(-2)
    through = SCALE * (1 - (r.unsqueeze(-1) * kernel * c.unsqueeze(-2) * cost).sum((2, 3)))
    ours = align_scores(**arguments, beta=0.0, threshold=1e-10, max_iter=1000).scores
    torch.testing.assert_close(ours, through, atol=1e-6, rtol=0)
    mine, theirs = gradients(ours, arguments)[0], gradients(through, arguments)[0]
    assert (mine - theirs).abs().max() > 1e-3


def test_no_similarities_are_kept_for_the_backward_pass(rng):
    arguments = features(rng)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        align_scores(**arguments)
    features_alone = sum(arguments[name].numel() for name in NAMES)
    assert max(kept) < B * C * M * N * J * L / 3
    assert features_alone < sum(kept) < 8 * features_alone


def test_evaluation_has_no_graph(rng):
    arguments = features(rng, torch.float32)
    with torch.no_grad():
        found = align_scores(**arguments)
    with torch.inference_mode():
        again = align_scores(**arguments)
    assert not found.scores.requires_grad
    assert not align_scores(**arguments).plan.requires_grad
    assert found.scores.equal(again.scores)


@pytest.mark.parametrize("name", NAMES)
def test_features_that_are_not_finite(name, rng):
    arguments = features(rng)
    broken = arguments[name].detach().clone()
    broken.view(-1)[E] = float("nan")
    arguments["text_mask"][..., 0] = True
    with pytest.raises(FloatingPointError, match="not finite"):
        align_scores(**arguments | {name: broken})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "both"}, "mode is 'both', expected one of paper, released"),
        ({"plan": "none"}, "plan is 'none', expected one of learned, uniform"),
        ({"stop": "now"}, "stop is 'now'"),
        ({"gradient": "exact"}, "gradient is 'exact', expected one of constant, regularized, implicit"),
        ({"gradient": "implicit", "mode": "released"}, "expected 'constant': the released form has no other"),
        ({"budget_bytes": 0}, "budget_bytes is 0"),
        ({"image_tokens": torch.zeros(B, M + 1, J, E)}, r"image_tokens has shape .* M = 3"),
        ({"text_pooled": torch.zeros(C, N, E - 1)}, r"text_pooled has shape .* E = 16"),
        ({"text_tokens": torch.zeros(C, N, E)}, r"text_tokens has shape"),
        ({"text_mask": torch.ones(C, N, L - 1, dtype=torch.bool)}, r"text_mask has shape"),
        ({"image_pooled": torch.zeros(0, M, E)}, "without empty axes"),
        ({"text_mask": torch.zeros(C, N, L, dtype=torch.bool)}, "10 of 10 sets"),
        ({"text_mask": torch.ones(C, N, L)}, r"torch\.bool"),
    ],
)
def test_bad_arguments(change, message, rng):
    with pytest.raises(ValueError, match=message):
        align_scores(**features(rng) | change)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["paper", "released"])
def test_on_a_gpu(mode, rng):
    arguments = features(rng, torch.float32)
    moved = {k: v.detach().cuda().requires_grad_() if k in NAMES else v for k, v in arguments.items()}
    moved["text_mask"] = moved["text_mask"].cuda()
    cpu, gpu = align_scores(**arguments, mode=mode), align_scores(**moved, mode=mode)
    torch.testing.assert_close(cpu.scores, gpu.scores.cpu(), atol=1e-4, rtol=0)


def plot_loop(image_set, text_set, stop, threshold, max_iter=100, reg=0.1):
    """PLOT's scores by a loop over pairs, which stop one by one or (`scaling_change`) all at the same iteration."""
    u, w = (x / x.norm(dim=-1, keepdim=True) for x in (image_set, text_set))
    similarities = [[u[b] @ w[c].T for c in range(len(w))] for b in range(len(u))]
    problems = [s for row in similarities for s in row]
    (m, n), kernels = problems[0].shape, [torch.exp(-(1 - s.detach()) / reg) for s in problems]
    states = [(torch.ones(m, dtype=u.dtype), torch.ones(n, dtype=u.dtype)) for _ in problems]
    done = [False] * len(problems)
    for _ in range(max_iter):
        changes = []
        for k, kernel in enumerate(kernels):
            if done[k]:
                continue
            before, c = states[k]
            r = 1 / m / (kernel @ c)
            c = 1 / n / (kernel.T @ r)
            states[k] = (r, c)
            changes.append((r - before).abs().mean())
            rows = (r[:, None] * kernel * c).sum(1)
            done[k] = stop == "marginal" and float((rows - 1 / m).abs().sum()) <= threshold
        if all(done) or (stop == "scaling_change" and torch.stack(changes).mean() < threshold):
            break
    plans = [r[:, None] * kernel * c for (r, c), kernel in zip(states, kernels)]
    scores = torch.stack([SCALE * (plan * s).sum() for plan, s in zip(plans, problems)]).view(len(u), len(w))
    return scores, plans


@pytest.mark.parametrize("budget", [1, 7 * WORKSPACES * J * N * 8, None])
@pytest.mark.parametrize(("stop", "threshold"), [("marginal", 1e-3), ("scaling_change", 1e-2)])
def test_plot_is_the_loop_over_pairs(stop, threshold, budget, rng):
    arguments = features(rng)
    sets = [arguments["image_tokens"][:, 0], arguments["text_pooled"]]
    found = plot_scores(*sets, SCALE, stop=stop, budget_bytes=budget)
    scores, plans = plot_loop(*sets, stop, threshold)
    torch.testing.assert_close(found.scores, scores, atol=1e-10, rtol=0)
    entropy = torch.stack([torch.special.entr(plan).sum() for plan in plans]).mean() / math.log(J * N)
    torch.testing.assert_close(found.entropy, entropy, atol=1e-3, rtol=0)
    for one, other in zip(gradients(found.scores, arguments), gradients(scores, arguments)):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    for plan in plans:  # the last half step fits the columns
        torch.testing.assert_close(plan.sum(0), torch.full_like(plan[0], 1 / N))


def test_only_the_released_rule_of_plot_looks_at_companions(rng):
    arguments = features(rng)
    sets = [arguments["image_tokens"][:, 0].detach(), arguments["text_pooled"].detach()]
    for stop in ("marginal", "scaling_change"):
        alone = plot_scores(sets[0][:1], sets[1], SCALE, stop=stop).scores[0]
        together = plot_scores(*sets, SCALE, stop=stop).scores[0]
        assert torch.allclose(alone, together, atol=1e-12, rtol=0) == (stop == "marginal")


def test_plot_with_one_prompt_is_the_mean_similarity(rng):
    arguments = features(rng, n=1)
    sets = [arguments["image_tokens"][:, 0], arguments["text_pooled"]]
    u, w = (normalize(x, dim=-1) for x in sets)
    expected = SCALE * (u @ w[:, 0].T).mean(1)
    for stop in ("marginal", "scaling_change"):
        torch.testing.assert_close(plot_scores(*sets, SCALE, stop=stop).scores, expected, atol=1e-9, rtol=0)


def test_plot_refuses_what_does_not_fit(rng):
    with pytest.raises(ValueError, match=r"text_set has shape \(5, 2, 8\).*E = 16"):
        plot_scores(torch.randn(3, 4, 16), torch.randn(5, 2, 8), 1.0)
    with pytest.raises(ValueError, match="stop is 'never'"):
        plot_scores(torch.randn(3, 4, 16), torch.randn(5, 2, 16), 1.0, stop="never")
    with pytest.raises(FloatingPointError, match="not finite"):
        plot_scores(torch.full((3, 4, 16), float("nan")), torch.randn(5, 2, 16), 1.0)
