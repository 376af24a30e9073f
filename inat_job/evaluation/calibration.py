"""Calibration: reliability bins, the expected calibration error, and the temperature that lowers it.

Guo et al., On calibration of modern neural networks, 2017. All of it in numpy, so that equal predictions give equal
digits.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from inat_job.evaluation.prediction_table import PredictionTable, log_probabilities, softmax

_BINS = 15
_LEAST, _MOST = 0.05, 20.0
_STEPS, _TOLERANCE = 100, 1e-12


def fit_temperature(table: PredictionTable) -> float:
    """The temperature in 0.05..20 with the least mean loss on these images; 1.0 where nothing can be learned of it.

    That is so without images, and where the loss falls as far as the temperature does, since all images are classified
    correctly. The loss is convex in the inverse temperature, so its derivative has one root at most.
    """
    if not len(table):
        return 1.0
    logits = log_probabilities(table.probabilities)
    true = logits[np.arange(len(table)), table.labels]

    def slopes(inverse: float) -> tuple[float, float]:
        p = softmax(logits * inverse)
        means = (p * logits).sum(axis=1)
        spreads = (p * (logits - means[:, None]) ** 2).sum(axis=1)
        return float((means - true).mean()), float(spreads.mean())

    low, high = 1 / _MOST, 1 / _LEAST
    if slopes(high)[0] <= 0:
        return 1.0
    return _MOST if slopes(low)[0] >= 0 else 1 / _root(slopes, low, high)


def tempered(table: PredictionTable, temperature: float) -> PredictionTable:
    """The table with the probabilities that the logits have when they are divided by a temperature."""
    scaled = log_probabilities(table.probabilities) / temperature
    return replace(table, probabilities=softmax(scaled)) if temperature != 1 else table


def expected_calibration_error(table: PredictionTable) -> float:
    """Mean gap between confidence and accuracy over 15 bins of confidence, weighted by their images; 0..1."""
    _, confidence, correct = _bins(table)
    return float(np.abs(confidence - correct).sum() / len(table))


def reliability(table: PredictionTable) -> list[dict[str, Any]]:
    """The bins of that error, from confidence 0 to 1 in equal widths, with null for the means of an empty bin."""
    return [
        {
            "count": int(count),
            "confidence": float(confidence / count) if count else None,
            "accuracy": float(correct / count) if count else None,
        }
        for count, confidence, correct in zip(*_bins(table), strict=True)
    ]


def _bins(table: PredictionTable) -> tuple[np.ndarray, ...]:
    """The images of each bin, the sum of their confidences, and how many are classified correctly."""
    bins = np.minimum((table.confidences * _BINS).astype(np.int64), _BINS - 1)
    weights = (None, table.confidences, table.predicted == table.labels)
    return tuple(np.bincount(bins, each, _BINS) for each in weights)


def _root(slopes: Callable[[float], tuple[float, float]], low: float, high: float) -> float:
    """Where a rising function is zero, between two points around it: Newton's method, or else halves."""
    at = min(max(1.0, low), high)
    for _ in range(_STEPS):
        value, slope = slopes(at)
        low, high = (at, high) if value < 0 else (low, at)
        after = at - value / slope if slope > 0 else low
        after = after if low < after < high else (low + high) / 2
        if abs(after - at) <= _TOLERANCE * at:
            return after
        at = after
    return at
