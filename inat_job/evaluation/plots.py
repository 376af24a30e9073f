"""The report's plots, learning curves and confusion matrix. This is the only module that imports matplotlib."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Row = Mapping[str, Any]

_COUNTED, _NAMED = 30, 60
"""Numbers of classes up to which the confusion matrix shows counts in its cells, and class names at its axes."""


def learning_curves(rows: Sequence[Row], path: Path) -> None:
    """Plot training loss, validation loss and accuracy over optimiser steps, from the rows of metrics.jsonl."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    loss, accuracy = figure.subplots(1, 2)
    for axes, names in ((loss, ("train_loss", "val_loss")), (accuracy, ("val_accuracy",))):
        for name in names:
            points = [(row["step"], row[name]) for row in rows if name in row]
            axes.plot(*zip(*points, strict=True), label=name) if points else None
        axes.set_xlabel("step")
        if axes.lines:
            axes.legend()
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def confusion_matrix(matrix: Sequence[Sequence[int]], classes: Sequence[str], path: Path) -> None:
    """Plot the confusion matrix, true class by row, shaded by share of the row; with many classes only the shades."""
    side = 3 + 0.5 * min(len(classes), _NAMED)
    figure = Figure(figsize=(side, side), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = [[count / max(1, sum(row)) for count in row] for row in matrix]
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if len(classes) <= _COUNTED:
        _write_counts(axes, matrix, shares)
    if len(classes) <= _NAMED:
        axes.set_xticks(range(len(classes)), classes, rotation=90, parse_math=False)
        axes.set_yticks(range(len(classes)), classes, parse_math=False)
    figure.savefig(path, dpi=110)


def _write_counts(axes: Any, matrix: Sequence[Sequence[int]], shares: Sequence[Sequence[float]]) -> None:
    for i, row in enumerate(matrix):
        for j, count in enumerate(row):
            axes.text(j, i, str(count), ha="center", va="center", color="white" if shares[i][j] > 0.5 else "black")
