"""The metrics of a split, from its predictions: accuracy with its interval, loss, calibration, those of each class."""

import math
from statistics import fmean
from typing import Any

import numpy as np

from inat_job.evaluation.calibration import expected_calibration_error, reliability, tempered
from inat_job.evaluation.prediction_table import PredictionTable

Z95 = 1.959963984540054
"""Standard deviations from the mean that hold 95 % of a normal distribution."""
_TOP = 3


def split_metrics(table: PredictionTable, temperature: float) -> dict[str, Any]:
    """The report's section of a split, which has at least one image.

    In the result, `confusion[i][j]` is the number of images of class i classified as class j. Balanced accuracy is the
    mean recall of the classes that have images, macro F1 the mean F1 of the classes that have images or predictions.
    `calibrated` has the loss and the ECE at the given temperature.
    """
    matrix = confusion_matrix(table)
    per_class = {name: _class_metrics(matrix, label) for label, name in enumerate(table.classes)}
    occurs = matrix.sum(axis=0) + matrix.sum(axis=1) > 0
    cooled = tempered(table, temperature)
    return {
        **accuracy_metrics(table),
        "top3_accuracy": float((_ranks(table) < _TOP).mean()),
        "balanced_accuracy": fmean(each["recall"] for each in per_class.values() if each["n"]),
        "macro_f1": fmean(each["f1"] for each, there in zip(per_class.values(), occurs, strict=True) if there),
        "loss": float(table.losses.mean()),
        "ece": expected_calibration_error(table),
        "reliability": reliability(table),
        "calibrated": {"loss": float(cooled.losses.mean()), "ece": expected_calibration_error(cooled)},
        "per_class": per_class,
        "confusion": matrix.tolist(),
    }


def accuracy_metrics(table: PredictionTable) -> dict[str, Any]:
    """The images, those classified correctly, and their share with Wilson's interval; there is at least one image."""
    n, correct = len(table), int((table.predicted == table.labels).sum())
    return {"n": n, "correct": correct, "accuracy": correct / n, "ci95": list(wilson_interval(correct, n))}


def majority_baseline(train_labels: np.ndarray, table: PredictionTable) -> dict[str, Any]:
    """The accuracy of always predicting the most frequent class in training (the first of equally frequent ones)."""
    most = int(np.bincount(train_labels).argmax())
    return {"class": table.classes[most], "accuracy": float((table.labels == most).mean())}


def confusion_matrix(table: PredictionTable) -> np.ndarray:
    """Counts, int64 (classes, classes): the row is the true class, the column the predicted one."""
    classes = len(table.classes)
    counts = np.bincount(table.labels * classes + table.predicted, minlength=classes**2)
    return counts.reshape(classes, classes)


def wilson_interval(correct: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % score interval (1927) of the proportion `correct` / `n`, 0..1."""
    share, z2 = correct / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def _ranks(table: PredictionTable) -> np.ndarray:
    """How many classes come before the true one, int64 (n,): of equally probable classes the first comes first."""
    p = table.probabilities
    true = p[np.arange(len(table)), table.labels][:, None]
    first = np.arange(p.shape[1]) < table.labels[:, None]
    ranks: np.ndarray = ((p > true) | ((p == true) & first)).sum(axis=1)
    return ranks


def _class_metrics(matrix: np.ndarray, label: int) -> dict[str, Any]:
    counts = (matrix[label, label], matrix[label].sum(), matrix[:, label].sum())
    hits, actual, predicted = (int(count) for count in counts)
    return {
        "n": actual,
        "precision": hits / predicted if predicted else 0.0,
        "recall": hits / actual if actual else 0.0,
        "recall_ci95": list(wilson_interval(hits, actual)) if actual else None,
        "f1": 2 * hits / (actual + predicted) if actual + predicted else 0.0,
    }
