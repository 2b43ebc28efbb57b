"""Hits and search of the cache model against its logits, which test_tip_adapter.py holds to loops."""

import pytest
import torch

from trainers.parts import cache_model
from trainers.parts.cache_model import Cache
from trainers.parts.losses import normalise

SCALE = 20.0


@pytest.fixture
def cache(rng):
    """Keys of 9 images of 3 classes, in evaluation mode."""
    made = Cache(normalise(torch.randn(3, 8, generator=rng)), images=9, alpha=1.0, beta=1.0, learned=False).eval()
    made.keys.copy_(normalise(torch.randn(9, 8, generator=rng)))
    made.labels.copy_(torch.arange(9) % 3)
    return made


@pytest.fixture
def images(rng):
    """Features of 11 images and their classes."""
    return torch.randn(11, 8, generator=rng), torch.randint(3, (11,), generator=rng)


def hits(cache, images, alpha, beta):
    cache.alpha.fill_(alpha)
    cache.beta.fill_(beta)
    return int((cache.logits(images[0], SCALE).argmax(1) == images[1]).sum())


def test_hits_in_blocks(cache, images, monkeypatch):
    alphas, betas = torch.tensor([0.5, 3.0, 20.0]), torch.tensor([0.2, 4.0])
    whole = cache.correct(*images, SCALE, alphas, betas)
    monkeypatch.setattr(cache_model, "BLOCK", 3 * 3 * 2)  # two images at a time
    assert torch.equal(cache.correct(*images, SCALE, alphas, betas), whole)
    assert whole.tolist() == [[hits(cache, images, alpha, beta) for alpha in alphas] for beta in betas]
    assert len(whole.unique()) > 1


def test_the_search_takes_the_first_best_pair(cache, images):
    found = cache.search(*images, SCALE, ends=(9.1, 60.1), steps=(3, 4))
    chosen = float(cache.alpha), float(cache.beta)
    pairs = [(0.1 + 15 * j, 0.1 + 3 * i) for i in range(3) for j in range(4)]
    counts = [hits(cache, images, *pair) for pair in pairs]
    assert found == max(counts)
    assert chosen == pytest.approx(pairs[counts.index(found)])
    assert counts.index(found) > 0
    assert counts.count(found) > 1
