"""The validation accuracy of the trials by their value of a setting: mean and 95 % interval of each."""

import functools
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

_BINS = 4
"""Intervals of a range, each of as many trials."""

Trial = Mapping[str, Any]


def accuracy_of(trial: Trial) -> float | None:
    """The validation accuracy of a trial of a report; of one that is not done, the best of its epochs so far."""
    known = trial["val_accuracy"] if trial["outcome"] == "done" else max(trial["epochs"], default=None)
    return None if known is None else float(known)


def by_value(key: str, axis: Mapping[str, Any], trials: Sequence[Trial]) -> list[dict[str, Any]]:
    """A row for each choice of a setting, or for each interval of its range, from its lowest to its highest value."""
    known = [
        (trial["values"][key], accuracy)
        for trial in trials
        if key in trial["values"] and (accuracy := accuracy_of(trial)) is not None
    ]
    if "choices" in axis:
        groups = [(choice, [got for value, got in known if value == choice]) for choice in axis["choices"]]
    else:
        groups = [([part[0][0], part[-1][0]], [got for _, got in part]) for part in _bins(sorted(known))]
    return [
        {
            "value": value,
            "n": len(accuracies),
            "mean": statistics.fmean(accuracies) if accuracies else None,
            "ci95": mean_interval(accuracies),
        }
        for value, accuracies in groups
    ]


def _bins(pairs: Sequence[tuple[float, float]]) -> list[Sequence[tuple[float, float]]]:
    count = min(_BINS, len(pairs))
    ends = [round(at * len(pairs) / count) for at in range(count + 1)] if count else []
    return [pairs[start:end] for start, end in itertools.pairwise(ends)]


def mean_interval(shares: Sequence[float]) -> list[float] | None:
    """The 95 % interval of the mean of shares of one, by Student's t; None for fewer than two."""
    if len(shares) < 2:
        return None
    mean = statistics.fmean(shares)
    half = _student_t(len(shares) - 1) * statistics.stdev(shares) / math.sqrt(len(shares))
    return [max(0.0, mean - half), min(1.0, mean + half)]


@functools.cache
def _student_t(freedom: int) -> float:
    """The two-sided 95 % point of Student's t, by bisection."""
    low, high = 0.0, 13.0  # 12.7 for one degree of freedom, and less for more
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, freedom) < 0.95 else (low, middle)
    return low


def _within(t: float, freedom: int) -> float:
    """The probability of a value from -t to t: Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for at in range(3 if odd else 2, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (at - 1) / at
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total
