"""Recall of images and captions against a plain loop."""

import pytest
import torch

from dassl.config import get_cfg_default
from dassl.evaluation import Retrieval, build_evaluator
from dassl.utils import distributed

KEYS = [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]


def by_loops(similarity, first):
    """Recalls by sorting every row and column, right candidates after wrong ones that are equal."""
    images, captions = len(similarity), len(similarity[0])
    image_of = [max(i for i in range(images) if first[i] <= c) for c in range(captions)]
    results = {}
    for depth in (1, 5, 10):
        hits = 0
        for i in range(images):
            order = sorted(range(captions), key=lambda c: (-similarity[i][c], image_of[c] == i))
            hits += any(image_of[c] == i for c in order[:depth])
        results[f"image_to_text_r{depth}"] = 100 * hits / images
        hits = 0
        for c in range(captions):
            order = sorted(range(images), key=lambda i: (-similarity[i][c], image_of[c] == i))
            hits += image_of[c] in order[:depth]
        results[f"text_to_image_r{depth}"] = 100 * hits / captions
    return results


@pytest.fixture
def cfg():
    cfg = get_cfg_default()
    cfg.VERBOSE, cfg.TEST.EVALUATOR = False, "Retrieval"
    return cfg


def evaluate(cfg, similarity, first, order, batch=7):
    evaluator = build_evaluator(cfg, lab2cname={})
    for rows in torch.tensor(order).split(batch):
        evaluator.process(similarity[rows], torch.tensor(first)[rows])
    return evaluator.evaluate()


@pytest.mark.parametrize("ties", [False, True])
def test_recalls_equal_the_loops(cfg, rng, ties):
    counts = torch.randint(1, 6, (23,), generator=rng)
    first = [0, *counts.cumsum(0)[:-1].tolist()]
    similarity = torch.randn(23, int(counts.sum()), generator=rng)
    for i, (start, count) in enumerate(zip(first, counts.tolist())):
        similarity[i, start : start + count] += 1.0
    if ties:
        similarity = similarity.mul(2).round()
    order = torch.randperm(23, generator=rng).tolist()
    found = evaluate(cfg, similarity, first, order)
    expected = by_loops(similarity.tolist(), first)
    assert list(found) == ["mean_recall", *KEYS]
    assert {key: found[key] for key in KEYS} == pytest.approx(expected)
    assert found["mean_recall"] == pytest.approx(sum(expected.values()) / 6)
    assert 0 < found["image_to_text_r1"] < found["image_to_text_r10"] <= 100


def test_a_model_that_finds_everything_equal_finds_nothing(cfg):
    assert evaluate(cfg, torch.ones(12, 24), list(range(0, 24, 2)), list(range(12)))["mean_recall"] == 0


def test_other_captions_of_the_same_image_do_not_count_against_it(cfg):
    similarity = torch.tensor([[1.0, 1.0, 0.5], [0.2, 0.1, 0.9]])
    assert evaluate(cfg, similarity, [0, 2], [0, 1])["image_to_text_r1"] == 100


def test_two_processes_get_the_figures_of_one(cfg, rng, monkeypatch):
    similarity, first = torch.randn(9, 18, generator=rng), list(range(0, 18, 2))
    whole = evaluate(cfg, similarity, first, list(range(9)))
    shares = [[0, 2, 4, 6, 8], [1, 3, 5, 7]]
    evaluators = []
    for rows in shares:
        evaluators.append(Retrieval(cfg))
        evaluators[-1].process(similarity[rows], torch.tensor(first)[rows])
    # Every gathering asks both processes; the other one's answers are taken from a first, incomplete pass.
    answers: list[list] = [[], []]
    for _ in range(5):
        for rank, evaluator in enumerate(evaluators):
            calls = iter(range(100))

            def gather(value, rank=rank, calls=calls):
                number, other = next(calls), answers[1 - rank]
                answers[rank][number:] = [value]
                both = [value, other[number] if number < len(other) else value]
                return both if rank == 0 else both[::-1]

            monkeypatch.setattr(distributed, "all_gather_object", gather)
            try:
                result = evaluator.evaluate()
            except ValueError:
                continue
    assert result == whole


@pytest.mark.parametrize("labels", [[0, 0, 4], [1, 2, 4], [0, 2, 6]])
def test_labels_that_are_those_of_no_retrieval_set(cfg, labels):
    with pytest.raises(ValueError, match="not those of a data set for retrieval"):
        evaluate(cfg, torch.randn(3, 6), labels, [0, 1, 2])


def test_faults(cfg):
    evaluator = Retrieval(cfg)
    with pytest.raises(ValueError, match="no image was processed"):
        evaluator.evaluate()
    with pytest.raises(ValueError, match="1 of 2 images are NaN"):
        evaluator.process(torch.tensor([[0.0, 1.0], [torch.nan, 0.0]]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="expected logits"):
        evaluator.process(torch.zeros(2, 3), torch.zeros(3))
