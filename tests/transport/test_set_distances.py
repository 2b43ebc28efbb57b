"""Distances of sets against plain loops, as PLOT uses them, and the work space they are made in."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from transport.set_distances import _parts, set_distances
from transport.sinkhorn import WORKSPACES

B, C, N, J, E, SCALE = 3, 5, 2, 11, 16, 20.0


def features(rng, n=N):
    """Sets (B, J, E) and (C, n, E) whose similarities spread widely, so that plans are far from uniform."""
    base = torch.randn(4, E, generator=rng, dtype=torch.float64)
    values = [
        torch.randn(*shape, 4, generator=rng, dtype=torch.float64) @ base
        + torch.randn(*shape, E, generator=rng, dtype=torch.float64)
        for shape in ((B, J), (C, n))
    ]
    return [value.requires_grad_() for value in values]


def plot_scores(image_set, text_set, stop="marginal", **options):
    found = set_distances(image_set[:, None], text_set[:, None], stop=stop, together=stop != "marginal", **options)
    return SCALE * (1 - found.value[:, :, 0, 0]), found.entropy


def gradients(scores, leaves):
    return torch.autograd.grad(cross_entropy(scores, torch.arange(B)), leaves)


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
    sets = features(rng)
    found, found_entropy = plot_scores(*sets, stop=stop, budget_bytes=budget)
    scores, plans = plot_loop(*sets, stop, threshold)
    torch.testing.assert_close(found, scores, atol=1e-10, rtol=0)
    entropy = torch.stack([torch.special.entr(plan).sum() for plan in plans]).mean() / math.log(J * N)
    torch.testing.assert_close(found_entropy, entropy, atol=1e-3, rtol=0)
    for one, other in zip(gradients(found, sets), gradients(scores, sets)):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    for plan in plans:  # the last half step fits the columns
        torch.testing.assert_close(plan.sum(0), torch.full_like(plan[0], 1 / N))


def test_only_the_released_rule_of_plot_looks_at_companions(rng):
    sets = [x.detach() for x in features(rng)]
    for stop in ("marginal", "scaling_change"):
        alone = plot_scores(sets[0][:1], sets[1], stop=stop)[0][0]
        together = plot_scores(*sets, stop=stop)[0][0]
        assert torch.allclose(alone, together, atol=1e-12, rtol=0) == (stop == "marginal")


def test_plot_with_one_prompt_is_the_mean_similarity(rng):
    sets = features(rng, n=1)
    u, w = (normalize(x, dim=-1) for x in sets)
    expected = SCALE * (u @ w[:, 0].T).mean(1)
    for stop in ("marginal", "scaling_change"):
        torch.testing.assert_close(plot_scores(*sets, stop=stop)[0], expected, atol=1e-9, rtol=0)


def test_plot_refuses_what_does_not_fit(rng):
    with pytest.raises(ValueError, match=r"texts has shape \(5, 1, 2, 8\).*E = 16"):
        plot_scores(torch.randn(3, 4, 16), torch.randn(5, 2, 8))
    with pytest.raises(ValueError, match="stop is 'never'"):
        plot_scores(torch.randn(3, 4, 16), torch.randn(5, 2, 16), stop="never")
    with pytest.raises(FloatingPointError, match="not finite"):
        plot_scores(torch.full((3, 4, 16), float("nan")), torch.randn(5, 2, 16))
