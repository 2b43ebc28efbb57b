"""Do two methods differ: paired tests over data sets and seeds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from experiments.reports.cells import Block
from experiments.reports.stats import Paired, paired

Pairs = list[tuple[float, float]]


class Comparison(NamedTuple):
    """Two methods on the cells of one table, or of several."""

    title: str
    first: str
    second: str
    runs: Paired
    """Pairs are data set and seed. Seeds of one data set share its images, so that p is smaller than the evidence."""
    datasets: Paired
    """Pairs are data sets, each with the mean over the shared seeds: fewer pairs, which are independent."""


def compare(blocks: Sequence[Block], first: str, second: str, test: str = "wilcoxon") -> list[Comparison]:
    """Paired tests of `second` against `first` in every table, and over all numbers of shots where there are several.

    A method that learns nothing has one value per data set, which is paired with every seed of the other.

    Raises:
        ValueError: a method is in no table, or the two share no data set and seed.
    """
    for name in (first, second):
        known = list(dict.fromkeys(method for block in blocks for method in block.methods))
        if name not in known:
            raise ValueError(f'there is no method "{name}" to compare, choose from: {", ".join(known)}')
    found: list[Comparison] = []
    gathered: dict[str, Pairs] = {}
    for block in blocks:
        if first not in block.methods or second not in block.methods:
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
    pairs = [pair for group in groups.values() for pair in group]
    means = [tuple(sum(side) / len(group) for side in zip(*group)) for group in groups.values()]
    return Comparison(
        title,
        first,
        second,
        paired([a for a, _ in pairs], [b for _, b in pairs], test),
        paired([a for a, _ in means], [b for _, b in means], test),
    )


def _pairs(block: Block, first: str, second: str) -> dict[str, Pairs]:
    """Per data set the values of both methods, seed by seed; data sets without a shared seed are left out."""
    groups = {}
    for dataset in block.datasets:
        if dataset in block.sources:
            continue
        a, b = block.cells[first, dataset], block.cells[second, dataset]
        seeds = sorted({*a.values, *b.values})
        values = []
        for seed in seeds:
            x, y = (
                cell.summary.mean
                if cell.method in block.untrained and cell.summary is not None
                else cell.values.get(seed)
                for cell in (a, b)
            )
            if x is not None and y is not None:
                values.append((x, y))
        if values:
            groups[dataset] = values
    return groups
