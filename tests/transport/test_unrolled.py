"""The transport of exported graphs against the solver."""

import pytest
import torch

from transport.set_distances import set_distances
from transport.sinkhorn import sinkhorn
from transport.unrolled import unrolled_plan


@pytest.mark.parametrize("iterations", [1, 5, 100])
def test_plans_are_those_of_the_solver(iterations, rng):
    cost = 2 * torch.rand(3, 4, 9, 6, generator=rng, dtype=torch.float64)
    mass = torch.tensor([[0.25] * 4 + [0.0] * 2, [1 / 6] * 6, [1.0] + [0.0] * 5, [0.5, 0.5] + [0.0] * 4]).double()
    rows = torch.full((9,), 1 / 9, dtype=torch.float64)
    expected = sinkhorn(cost, rows, mass, max_iter=iterations, threshold=1e-30).plan
    torch.testing.assert_close(unrolled_plan(cost, mass, 0.1, iterations), expected, rtol=1e-9, atol=1e-12)


def test_exported_distances_are_those_of_every_pair(rng, monkeypatch):
    images = torch.nn.functional.normalize(torch.randn(2, 3, 5, 8, generator=rng), dim=-1)
    texts = torch.nn.functional.normalize(torch.randn(4, 2, 6, 8, generator=rng), dim=-1)
    mask = torch.rand(4, 2, 6, generator=rng) < 0.6
    mask[..., 0] = True
    with monkeypatch.context() as traced:
        traced.setattr(torch.compiler, "is_exporting", lambda: True)
        found = set_distances(images, texts, mask, max_iter=50).value
    for b, c, m, n in [(0, 0, 0, 0), (1, 3, 2, 1), (0, 2, 1, 0)]:
        cost = 1 - images[b, m] @ texts[c, n].T
        cols = mask[c, n] / mask[c, n].sum()
        plan = sinkhorn(cost, torch.full((5,), 0.2), cols, max_iter=50, threshold=1e-9).plan
        torch.testing.assert_close(found[b, c, m, n], (plan * cost).sum(), rtol=1e-4, atol=1e-5)
