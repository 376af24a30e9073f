"""The metrics of a split, from its logits: accuracy with its interval, loss, calibration, and those of each class."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_Z95 = 1.959963984540054
_ECE_BINS = 15


def split_metrics(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """The report's section of a split.

    `logits` is float32 (n, len(classes)), `labels` int64 (n,). In the result, `ci95` is Wilson's score interval
    (1927), `ece` the expected calibration error over 15 bins of equal width (Guo et al., On calibration of modern
    neural networks, 2017), and `confusion[i][j]` the number of images of class i classified as class j.
    """
    matrix = confusion_matrix(logits.argmax(dim=1), labels, len(classes))
    n, correct = len(labels), int(matrix.diagonal().sum())
    return {
        "n": n,
        "correct": correct,
        "accuracy": correct / n,
        "ci95": list(wilson_interval(correct, n)),
        "loss": float(F.cross_entropy(logits.double(), labels)),
        "ece": expected_calibration_error(logits, labels),
        "per_class": {name: _class_metrics(matrix, label) for label, name in enumerate(classes)},
        "confusion": matrix.tolist(),
    }


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts, int64 (classes, classes): the row is the true class, the column the predicted one."""
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval of the proportion `correct` / `n`, 0..1."""
    share, z2 = correct / n, _Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def expected_calibration_error(logits: Tensor, labels: Tensor) -> float:
    """Mean gap between confidence and accuracy over bins of confidence, weighted by their predictions; 0..1."""
    confidence, predicted = logits.double().softmax(dim=1).max(dim=1)
    bins = (confidence * _ECE_BINS).long().clamp(max=_ECE_BINS - 1)
    gap = (predicted == labels).double() - confidence
    sums = torch.zeros(_ECE_BINS, dtype=torch.float64).index_add_(0, bins, gap)
    return float(sums.abs().sum() / len(labels))


def _class_metrics(matrix: Tensor, label: int) -> dict[str, float | int]:
    counts = (matrix[label, label], matrix[label].sum(), matrix[:, label].sum())
    hits, actual, predicted = (int(count) for count in counts)
    precision = hits / predicted if predicted else 0.0
    recall = hits / actual if actual else 0.0
    f1 = 2 * hits / (actual + predicted) if actual + predicted else 0.0
    return {"n": actual, "precision": precision, "recall": recall, "f1": f1}
