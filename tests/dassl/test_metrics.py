"""Accuracy and distances."""

import pytest
import torch
from sklearn.metrics import pairwise_distances, top_k_accuracy_score

from dassl.metrics import compute_accuracy, compute_distance_matrix, cosine_distance, euclidean_squared_distance


def test_accuracy_against_scikit_learn(rng):
    scores = torch.randn(50, 7, generator=rng)
    labels = torch.randint(7, (50,), generator=rng)
    found = compute_accuracy(scores, labels, topk=(1, 3, 7))
    for k, value in zip((1, 3, 7), found):
        assert value.shape == (1,)
        expected = 100 * top_k_accuracy_score(labels, scores, k=k, labels=range(7)) if k < 7 else 100.0
        assert value.item() == pytest.approx(expected, rel=1e-5)
    assert compute_accuracy((scores, None), labels)[0].item() == found[0].item()


def test_accuracy_faults(rng):
    scores = torch.randn(4, 3, generator=rng)
    with pytest.raises(ValueError, match=r"topk is \(1, 5\), expected numbers from 1 to 3"):
        compute_accuracy(scores, torch.zeros(4), topk=(1, 5))
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(5,\)"):
        compute_accuracy(scores, torch.zeros(5))


def test_distances_against_scikit_learn(rng):
    a, b = torch.randn(4, 6, generator=rng), torch.randn(5, 6, generator=rng)
    euclidean = torch.tensor(pairwise_distances(a, b)) ** 2
    cosine = torch.tensor(pairwise_distances(a, b, metric="cosine"))
    assert torch.allclose(compute_distance_matrix(a, b), euclidean.float(), atol=1e-5)
    assert torch.allclose(compute_distance_matrix(a, b, "cosine"), cosine.float(), atol=1e-5)
    assert euclidean_squared_distance(a, a).diagonal().min() >= 0
    assert cosine_distance(a, a).diagonal().abs().max() < 1e-6
    with pytest.raises(ValueError, match="Unknown distance metric: l1"):
        compute_distance_matrix(a, b, "l1")
    with pytest.raises(ValueError, match="expected"):
        compute_distance_matrix(a, b[:, :2])
