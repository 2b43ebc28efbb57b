"""Paired tests of two methods over data sets and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments.reports.cells import Block, Cell
from experiments.reports.stats import Paired, paired

Pairs = list[tuple[float, float]]


class Comparison(NamedTuple):
    """Two methods on the cells of one table, or of several."""

    title: str
    first: str
    second: str
    runs: Paired
    """Pairs are data set and seed. Seeds of one data set share its images, so p is too small."""
    datasets: Paired
    """Pairs are data sets, each with the mean over the shared seeds: fewer pairs, but independent."""


def compare(blocks: Sequence[Block], first: str, second: str, test: str = "wilcoxon") -> list[Comparison]:
    """Paired tests of `second` against `first` in every table, and over all numbers of shots where there are several.

    A method that learns nothing has one value per data set, which is paired with every seed of the other.

    Raises:
        ValueError: a method is in no table, or the two share no data set and seed.
    """
    known = list(dict.fromkeys(method for block in blocks for method in block.methods))
    for name in (first, second):
        if name not in known:
            raise ValueError(f'there is no method "{name}" to compare, choose from: {", ".join(known)}')
    found: list[Comparison] = []
    gathered: dict[str, Pairs] = {}
    for block in blocks:
        if not {first, second} <= set(block.methods):
            continue
        groups = _pairs(block, first, second)
        if block.metric == "accuracy":
            for dataset, pairs in groups.items():
                gathered.setdefault(dataset, []).extend(pairs)
        if groups:
            found.append(_comparison(block.title, first, second, groups, test))
    if not found:
        raise ValueError(f'"{first}" and "{second}" share no finished data set and seed, so they cannot be compared')
    if len(found) > 1 and gathered:
        found.append(_comparison("All numbers of shots", first, second, gathered, test))
    return found


def _comparison(title: str, first: str, second: str, groups: dict[str, Pairs], test: str) -> Comparison:
    runs = np.concatenate(list(groups.values()))
    means = np.array([np.mean(group, axis=0) for group in groups.values()])
    tests = (paired(pairs[:, 0].tolist(), pairs[:, 1].tolist(), test) for pairs in (runs, means))
    return Comparison(title, first, second, *tests)


def _pairs(block: Block, first: str, second: str) -> dict[str, Pairs]:
    """Values of both methods by data set, seed by seed; data sets without a shared seed are left out."""

    def value(cell: Cell, seed: int) -> float | None:
        return cell.summary.mean if cell.method in block.untrained and cell.summary else cell.values.get(seed)

    groups = {}
    for dataset in (name for name in block.datasets if name not in block.sources):
        a, b = block.cells[first, dataset], block.cells[second, dataset]
        pairs = [(value(a, seed), value(b, seed)) for seed in sorted({*a.values, *b.values})]
        groups[dataset] = [(x, y) for x, y in pairs if x is not None and y is not None]
    return {dataset: pairs for dataset, pairs in groups.items() if pairs}
