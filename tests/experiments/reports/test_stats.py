"""Means, intervals and tests against numpy, scipy and numbers worked out by hand."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.reports.stats import harmonic, paired, summarize


def test_summary_is_that_of_numpy_and_scipy():
    values = [44.91, 46.2, 43.7]
    found = summarize(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(math.sqrt(sum((v - np.mean(values)) ** 2 for v in values) / 2))
    expected = stats.t.interval(0.95, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.n == 3


def test_interval_by_hand():
    # Two values 1 apart: std sqrt(1/2), standard error 1/2, t of 1 degree of freedom 12.706.
    found = summarize([60.0, 61.0])
    assert found.std == pytest.approx(math.sqrt(0.5))
    assert found.high - found.mean == pytest.approx(12.7062 / 2, abs=1e-4)


def test_one_value_has_no_spread():
    assert summarize([50.0]) == (50.0, None, None, None, 1)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_nothing_to_average(values):
    with pytest.raises(ValueError, match="average"):
        summarize(values)


def test_harmonic_mean_of_a_published_row():
    assert harmonic(82.69, 63.22) == pytest.approx(71.66, abs=0.005)
    assert harmonic(0.0, 0.0) == 0.0


def signed_rank_p(differences):
    """Two-sided exact p by counting all sign patterns."""
    ranks = stats.rankdata(np.abs(differences))
    low = min(ranks[np.array(differences) > 0].sum(), ranks[np.array(differences) < 0].sum())
    patterns = np.array(np.meshgrid(*[[0, 1]] * len(differences))).reshape(len(differences), -1)
    return min(1.0, 2 * np.mean(ranks @ patterns <= low))


def test_wilcoxon_is_exact_and_counts_every_sign_pattern():
    first = [50.0, 60.0, 70.0, 40.0, 30.0, 20.0]
    second = [51.0, 62.5, 73.7, 39.5, 34.1, 25.9]
    found = paired(first, second)
    differences = [b - a for a, b in zip(first, second)]
    assert found.p == pytest.approx(signed_rank_p(differences))
    assert found.p == pytest.approx(4 / 64)  # the one loss has the smallest rank: 2 patterns of 64 a side
    assert (found.test, found.n, found.wins, found.ties) == ("wilcoxon", 6, 5, 0)
    assert found.mean == pytest.approx(np.mean(differences))


@pytest.mark.parametrize(
    "second", [[1.0, 1.0, 2.0, -1.0, 3.0, 2.0, 0.0, 4.0], [0.2] * 5, [1.0, 1.0], [1.0, -1.0], [-2.0, 1.0, 1.0, -3.0]]
)
def test_wilcoxon_with_ties_among_few_pairs_is_exact(second):
    found = paired([0.0] * len(second), second)
    assert found.p == pytest.approx(signed_rank_p([d for d in second if d]))
    assert found.ties == second.count(0.0)


def test_wilcoxon_of_many_pairs_is_that_of_scipy():
    values = np.random.default_rng(1).normal(0.2, 1.0, 60)
    for count, method in ((50, "exact"), (60, "approx")):
        expected = stats.wilcoxon(values[:count], method=method)
        found = paired([0.0] * count, values[:count].tolist())
        assert (found.statistic, found.p) == pytest.approx((expected.statistic, expected.pvalue))


def test_rounding_of_floats_is_a_tie():
    found = paired([0.1 + 0.2, 50.0], [0.3, 51.0])
    assert (found.wins, found.ties) == (1, 1)


def test_t_test_is_that_of_scipy():
    first, second = [50.0, 60.0, 70.0, 40.0], [51.0, 62.5, 73.7, 39.5]
    expected = stats.ttest_rel(second, first)
    found = paired(first, second, "t")
    assert (found.statistic, found.p) == pytest.approx((expected.statistic, expected.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))


@pytest.mark.parametrize("test", ["wilcoxon", "t"])
@pytest.mark.parametrize("second", [[50.0, 60.0], [50.0]])
def test_no_p_where_nothing_differs_or_one_pair_is_left(test, second):
    assert paired([50.0, 60.0][: len(second)], second, test).p is None


def test_t_without_spread_has_no_p():
    assert paired([50.0, 60.0], [51.0, 61.0], "t").p is None
    assert paired([50.1, 60.2, 70.3], [50.2, 60.3, 70.4], "t").p is None  # nor what only rounding of floats spreads


def test_faults_of_the_call():
    with pytest.raises(ValueError, match="wilcoxon, t"):
        paired([1.0], [2.0], "sign")
    with pytest.raises(ValueError, match="1 and 2"):
        paired([1.0], [2.0, 3.0])
