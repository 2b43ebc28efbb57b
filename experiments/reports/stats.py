"""Means, spreads, intervals and paired tests of accuracies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments.reports.flags import TESTS


class Summary(NamedTuple):
    """Mean and spread of the runs of one cell, in the unit of the values."""

    mean: float
    std: float | None
    """Sample standard deviation (divided by n - 1); None for a single value."""
    low: float | None
    """Lower end of the 95 % interval of the mean (Student's t, n - 1 degrees of freedom); None for a single value."""
    high: float | None
    n: int

    def around(self, mean: float) -> Summary:
        """The same spread around another mean."""
        if self.std is None or self.high is None:
            return Summary(mean, None, None, None, self.n)
        half = self.high - self.mean
        return Summary(mean, self.std, mean - half, mean + half, self.n)


def summarize(values: Sequence[float]) -> Summary:
    """Mean, sample standard deviation and 95 % t interval.

    Raises:
        ValueError: there are no values, or one is not finite.
    """
    if not len(values):
        raise ValueError("there are no values to average")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"values to average must be finite, got {list(values)}")
    n, mean = len(values), float(np.mean(values))
    if n == 1:
        return Summary(mean, None, None, None, 1)
    std = float(np.std(values, ddof=1))
    half = float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return Summary(mean, std, mean - half, mean + half, n)


def harmonic(base: float, new: float) -> float:
    """Harmonic mean of two percentages, the H of base-to-new tables; 0 if both are 0."""
    return 2 * base * new / (base + new) if base + new else 0.0


class Paired(NamedTuple):
    """A paired test of the differences `second - first`."""

    test: str
    """wilcoxon or t."""
    n: int
    """Pairs, ties included."""
    mean: float
    low: float | None
    """Ends of the 95 % t interval of the mean difference; None with fewer than two pairs."""
    high: float | None
    wins: int
    """Pairs in which the second method is higher."""
    ties: int
    statistic: float | None
    p: float | None
    """Two-sided; None without meaning: fewer than two pairs, no pair differs, or (t) all differ equally."""


EXACT_PAIRS = 50  # up to so many pairs p of the signed-rank test is exact


def paired(first: Sequence[float], second: Sequence[float], test: str = "wilcoxon") -> Paired:
    """Two-sided paired test whether two methods differ, over the same data sets and seeds.

    Args:
        test: "wilcoxon" is the signed-rank test (pairs without difference are left out; exact p for up to 50 pairs, the
            normal approximation for more); "t" is Student's t for pairs.

    Raises:
        ValueError: the lists differ in length or are empty, or the test is not known.
    """
    if test not in TESTS:
        raise ValueError(f'there is no test "{test}", choose one of: {", ".join(TESTS)}')
    if len(first) != len(second):
        raise ValueError(f"paired values are needed, got {len(first)} and {len(second)}")
    # Accuracies are fractions of integers: what only rounding of floats tells apart is a tie.
    difference = np.round(np.asarray(second, dtype=float) - np.asarray(first, dtype=float), 9)
    summary = summarize(difference.tolist())
    statistic = p = None
    changed = difference[difference != 0]
    if summary.n > 1 and test == "wilcoxon" and len(changed):
        statistic, p = _signed_rank(changed)
    elif summary.n > 1 and test == "t" and np.ptp(difference) > 0:
        found = stats.ttest_1samp(difference, 0.0)
        statistic, p = float(found.statistic), float(found.pvalue)
    wins, ties = int((difference > 0).sum()), int((difference == 0).sum())
    return Paired(test, summary.n, summary.mean, summary.low, summary.high, wins, ties, statistic, p)


def _signed_rank(changed: np.ndarray) -> tuple[float, float]:
    """Smaller sum of ranks and two-sided p of the signed-rank test; `changed` are differences other than 0.

    For few pairs p is exact with ties too (equal differences share a mean rank), where the normal approximation gives
    less than the data can show: all sums of ranks over all choices of signs are counted.
    """
    if len(changed) > EXACT_PAIRS:
        found = stats.wilcoxon(changed, method="approx")
        return float(found.statistic), float(found.pvalue)
    ranks = np.rint(2 * stats.rankdata(np.abs(changed))).astype(int)  # twice, because mean ranks may be halves
    ways = np.zeros(ranks.sum() + 1)
    ways[0] = 1.0
    for rank in ranks:
        ways[rank:] = ways[rank:] + ways[: len(ways) - rank]
    smaller = min(ranks[changed > 0].sum(), ranks[changed < 0].sum())
    return smaller / 2, float(min(1.0, 2 * ways[: smaller + 1].sum() / ways.sum()))
