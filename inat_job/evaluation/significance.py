"""Whether two classifiers differ: differences and ratios of two accuracies with 95 % intervals, and McNemar's test.

Paired functions take the counts of images that both, only the first, only the second and none classify correctly.
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from inat_job.evaluation.metrics import Z95, wilson_interval

Interval = tuple[float, float]


@dataclass(frozen=True)
class PairedCounts:
    """Images that both runs classify correctly, only the first one, only the second one, none."""

    both: int
    first: int
    second: int
    none: int

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> Self:
        """The counts of two runs on the same images, given whether each was right, bool (n,)."""
        return cls(
            int((first & second).sum()),
            int((first & ~second).sum()),
            int((second & ~first).sum()),
            int((~first & ~second).sum()),
        )

    @property
    def n(self) -> int:
        return self.both + self.first + self.second + self.none


def mcnemar_p(counts: PairedCounts) -> float:
    """The two-sided p-value of McNemar's exact test: the images that one run alone gets right are fair coin tosses.

    https://www.statsmodels.org/stable/generated/statsmodels.stats.contingency_tables.mcnemar.html
    """
    n, fewer = counts.first + counts.second, min(counts.first, counts.second)
    ways, below = 1, 0  # integers, since a binomial coefficient of many images has no float
    for k in range(fewer + 1):
        below += ways
        ways = ways * (n - k) // (k + 1)
    return min(1.0, float(2 * below / 2**n))


def difference_interval(correct: tuple[int, int], n: tuple[int, int], phi: float = 0.0) -> Interval:
    """The interval of the second accuracy minus the first one, from Wilson's intervals of both.

    Newcombe, Interval estimation for the difference between independent proportions, 1998, method 10; with the
    correlation `phi` of `correlation`, for paired data: Improved confidence intervals for the difference between
    binomial proportions based on paired data, 1998, method 10.
    """
    (low1, high1), (low2, high2) = (wilson_interval(x, each) for x, each in zip(correct, n, strict=True))
    p1, p2 = correct[0] / n[0], correct[1] / n[1]
    down = _joined(p2 - low2, high1 - p1, phi)
    up = _joined(high2 - p2, p1 - low1, phi)
    return max(-1.0, p2 - p1 - down), min(1.0, p2 - p1 + up)


def correlation(counts: PairedCounts) -> float:
    """Newcombe's estimate of the correlation of two runs on the same images, towards zero by his correction."""
    a, b, c, d = counts.both, counts.first, counts.second, counts.none
    product = (a + b) * (c + d) * (a + c) * (b + d)
    if product == 0:
        return 0.0
    excess = a * d - b * c
    corrected = max(0.0, excess - counts.n / 2) if excess > 0 else excess
    return corrected / math.sqrt(product)


def paired_difference_interval(counts: PairedCounts) -> Interval:
    """The interval of the second accuracy minus the first one on the same images."""
    correct = (counts.both + counts.first, counts.both + counts.second)
    return difference_interval(correct, (counts.n, counts.n), correlation(counts))


def ratio_interval(correct: tuple[int, int], n: tuple[int, int]) -> Interval | None:
    """The interval of the second accuracy over the first one, on different images; None where one of them is zero.

    Katz et al., Obtaining confidence intervals for the risk ratio in cohort studies, 1978.
    """
    (x1, x2), (n1, n2) = correct, n
    return _log_interval(x2 * n1, x1 * n2, 1 / x1 - 1 / n1 + 1 / x2 - 1 / n2) if x1 and x2 else None


def paired_ratio_interval(counts: PairedCounts) -> Interval | None:
    """The interval of the second accuracy over the first one on the same images; None where one of them is zero.

    The delta method for the logarithm of a ratio of paired proportions, whose variance is (b + c) / (x1 x2): Nam and
    Blackwelder, Analysis of the ratio of marginal probabilities in a matched-pair setting, 2002.
    """
    x1, x2 = counts.both + counts.first, counts.both + counts.second
    return _log_interval(x2, x1, (counts.first + counts.second) / (x1 * x2)) if x1 and x2 else None


def _log_interval(above: float, below: float, variance: float) -> Interval:
    factor = math.exp(Z95 * math.sqrt(variance))
    return above / below / factor, above / below * factor


def _joined(first: float, second: float, phi: float) -> float:
    return math.sqrt(max(0.0, first**2 - 2 * phi * first * second + second**2))
