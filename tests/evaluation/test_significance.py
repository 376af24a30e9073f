"""Differences and ratios of accuracies, against scipy and statsmodels, published examples, and simulated coverage."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from scipy.stats.contingency import relative_risk
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import confint_proportions_2indep

from inat_job.evaluation.significance import (
    PairedCounts,
    correlation,
    difference_interval,
    mcnemar_p,
    paired_difference_interval,
    paired_ratio_interval,
    ratio_interval,
)

counted = st.builds(PairedCounts, *[st.integers(0, 60)] * 4).filter(lambda counts: counts.n > 0)


@given(counted)
def test_mcnemar_is_statsmodels_and_scipys(counts: PairedCounts) -> None:
    table = [[counts.both, counts.first], [counts.second, counts.none]]
    assert mcnemar_p(counts) == pytest.approx(mcnemar(table, exact=True).pvalue, rel=1e-9)
    if n := counts.first + counts.second:
        assert mcnemar_p(counts) == pytest.approx(binomtest(counts.first, n, 0.5).pvalue, rel=1e-9)


def test_mcnemar_of_many_images() -> None:
    """Whose binomial coefficients no float holds."""
    counts = PairedCounts(0, 4900, 5100, 0)
    assert mcnemar_p(counts) == pytest.approx(binomtest(4900, 10_000, 0.5).pvalue, rel=1e-9)
    assert mcnemar_p(PairedCounts(5, 0, 5000, 5)) == 0.0  # 2**-4999 is below all floats
    assert mcnemar_p(PairedCounts(5, 0, 0, 5)) == 1.0


@given(st.integers(1, 200), st.integers(1, 200), st.data())
def test_independent_difference_is_statsmodels(n1: int, n2: int, data: st.DataObject) -> None:
    x1, x2 = data.draw(st.integers(0, n1)), data.draw(st.integers(0, n2))
    theirs = confint_proportions_2indep(x2, n2, x1, n1, method="newcomb", compare="diff")
    assert difference_interval((x1, x2), (n1, n2)) == pytest.approx(theirs, abs=1e-9)


@given(st.integers(1, 200), st.integers(1, 200), st.data())
def test_independent_ratio_is_scipys(n1: int, n2: int, data: st.DataObject) -> None:
    x1, x2 = data.draw(st.integers(1, n1)), data.draw(st.integers(1, n2))
    theirs = relative_risk(x2, n2, x1, n1).confidence_interval(0.95)
    assert ratio_interval((x1, x2), (n1, n2)) == pytest.approx((theirs.low, theirs.high), rel=1e-9)


def test_ratio_without_a_hit_has_no_interval() -> None:
    assert ratio_interval((0, 3), (4, 4)) is None
    assert paired_ratio_interval(PairedCounts(0, 0, 3, 1)) is None


@given(counted)
def test_paired_intervals_hold_their_estimates_and_turn_with_the_runs(counts: PairedCounts) -> None:
    turned = PairedCounts(counts.both, counts.second, counts.first, counts.none)
    low, high = paired_difference_interval(counts)
    difference = (counts.second - counts.first) / counts.n
    assert low - 1e-9 <= difference <= high + 1e-9
    assert paired_difference_interval(turned) == pytest.approx((-high, -low), abs=1e-9)
    ratio, other = paired_ratio_interval(counts), paired_ratio_interval(turned)
    assert (ratio is None) == (other is None)
    if ratio and other:
        assert ratio[0] <= (counts.both + counts.second) / (counts.both + counts.first) <= ratio[1]
        assert ratio == pytest.approx((1 / other[1], 1 / other[0]), rel=1e-9)


@pytest.mark.parametrize(
    ("cells", "interval"),
    [
        ((36, 12, 2, 0), (0.0569, 0.3404)),
        ((18, 12, 2, 18), (0.0562, 0.3290)),
        ((1, 7, 1, 12), (0.026, 0.507)),
    ],
)
def test_paired_difference_is_newcombes(cells: tuple[int, ...], interval: tuple[float, float]) -> None:
    """Two examples of the paper, and one of Fagerland et al., Statistical Analysis of Contingency Tables, 2017."""
    both, first, second, none = cells
    assert paired_difference_interval(PairedCounts(both, second, first, none)) == pytest.approx(interval, abs=5e-4)


@given(counted)
def test_variance_of_the_paired_log_ratio_is_the_multinomials(counts: PairedCounts) -> None:
    """The gradient of the log-ratio times the covariance of a multinomial, without the shortened formula."""
    ratio = paired_ratio_interval(counts)
    if ratio is None:
        return
    p = np.array([counts.both, counts.first, counts.second, counts.none]) / counts.n
    p1, p2 = p[0] + p[1], p[0] + p[2]
    gradient = np.array([1 / p2 - 1 / p1, -1 / p1, 1 / p2, 0.0])
    covariance = (np.diag(p) - np.outer(p, p)) / counts.n
    deviation = np.sqrt(max(0.0, gradient @ covariance @ gradient))
    assert np.log(ratio[1] / ratio[0]) / 2 == pytest.approx(1.959963984540054 * deviation, abs=1e-6)


@pytest.mark.parametrize(("p1", "p2", "both"), [(0.5, 0.9, 0.48), (0.5, 0.55, 0.4), (0.3, 0.6, 0.2)])
def test_paired_intervals_cover(p1: float, p2: float, both: float) -> None:
    """The true difference and ratio in 93 to 98 % of 2,000 made-up pairs of runs on 344 images."""
    draw = np.random.default_rng(0).multinomial(344, [both, p1 - both, p2 - both, 1 - p1 - p2 + both], size=2000)
    runs = [PairedCounts(*map(int, each)) for each in draw]
    differences = [paired_difference_interval(counts) for counts in runs]
    ratios = [paired_ratio_interval(counts) for counts in runs]
    assert 0.93 <= np.mean([low <= p2 - p1 <= high for low, high in differences]) <= 0.98
    assert 0.93 <= np.mean([ratio[0] <= p2 / p1 <= ratio[1] for ratio in ratios if ratio]) <= 0.98


def test_paired_interval_is_narrower_where_runs_agree() -> None:
    agreeing, opposed = PairedCounts(50, 5, 10, 35), PairedCounts(20, 35, 40, 5)
    widths = [high - low for low, high in map(paired_difference_interval, (agreeing, opposed))]
    assert correlation(agreeing) > 0 > correlation(opposed)
    assert widths[0] < difference_width(agreeing) < widths[1]


def difference_width(counts: PairedCounts) -> float:
    low, high = difference_interval((counts.both + counts.first, counts.both + counts.second), (counts.n, counts.n))
    return high - low


def test_counts_of_two_runs() -> None:
    right = np.array([*itertools.product([True, False], repeat=2), (True, True)])
    assert PairedCounts.of(right[:, 0], right[:, 1]) == PairedCounts(2, 1, 1, 1)
