"""The report's diagrams: learning curves, confusion matrix and reliability."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from inat_job.evaluation.canvas import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILLION, WIDTH, new_figure, plain, save
from inat_job.evaluation.metrics import wilson_interval

Row = Mapping[str, Any]

_COUNTED, _NAMED = 20, 60
"""Numbers of classes up to which the confusion matrix shows counts in its cells, and class names at its axes."""


@dataclass(frozen=True)
class CurveMarks:
    """What the learning curves mark: the best step, the first steps of later attempts, and how training images are
    distorted (in words, empty if not at all)."""

    best_step: int | None = None
    attempts: tuple[int, ...] = ()
    training: str = ""


NO_MARKS = CurveMarks()


def learning_curves(rows: Sequence[Row], path: Path, marks: CurveMarks = NO_MARKS) -> None:
    """Plot training loss, validation loss, accuracy and learning rate over steps, from the rows of metrics.jsonl.

    A run without validation has no such plots.

    Each has its own axes: a training loss of augmented images and smoothed labels is no measure for a validation loss.
    """
    training = f"Training loss\n{f'({marks.training})' if marks.training else ''}"
    named: tuple[tuple[str, str, str], ...] = (
        ("train_loss", training, GREY),
        ("val_loss", "Validation loss\n(plain images and labels)", BLUE),
        ("lr", "Learning rate of the head", GREEN),
        ("val_accuracy", "Validation accuracy", BLUE),
    )
    named = tuple(each for each in named if any(each[0] in row for row in rows) or not each[0].startswith("val_"))
    figure = new_figure(310 * (len(named) // 2))
    panels = figure.subplots(len(named) // 2, 2, sharex=True).flat
    for axes, (name, title, colour) in zip(panels, named, strict=True):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            marker = "." if len(points) < 60 else ""
            axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.6, marker=marker)
        axes.set_title(title, fontsize=10, parse_math=False)
        axes.grid(alpha=0.3)
        _mark(axes, points, marks, best=name.startswith("val_"))
    for axes in panels[2:] if isinstance(panels, list) else figure.axes[2:]:
        axes.set_xlabel("optimiser step")
    handles = {
        label: line for axes in figure.axes for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, fontsize=9)
    save(figure, path)


def _mark(axes: Any, points: Sequence[tuple[int, float]], marks: CurveMarks, best: bool) -> None:
    for step in marks.attempts:
        axes.axvline(step, color=BLACK, linestyle=":", linewidth=1.2, label="a later attempt begins")
    values = dict(points)
    if best and marks.best_step in values:
        at = {"color": VERMILLION, "marker": "*", "markersize": 14, "linestyle": "none"}
        axes.plot([marks.best_step], [values[marks.best_step]], label="best epoch, which is tested", **at)


def confusion_matrix(matrix: Sequence[Sequence[int]], classes: Sequence[str], path: Path) -> None:
    """Plot the confusion matrix, true class by row, shaded by share of the row; with many classes only the shades."""
    figure = new_figure(0.8 * WIDTH)
    axes = figure.subplots()
    counts = np.array(matrix)
    shares = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    shown = axes.imshow(shares, cmap="cividis", vmin=0, vmax=1)
    figure.colorbar(shown, ax=axes, shrink=0.6, label="share of the true class")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if len(classes) <= _COUNTED:
        for i, j in np.ndindex(counts.shape):
            light = shares[i, j] > 0.5
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color="black" if light else "white")
    if len(classes) <= _NAMED:
        names = [plain(name, 22) for name in classes]
        size = 10 if len(classes) <= _COUNTED else 7
        axes.set_xticks(range(len(classes)), names, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(len(classes)), names, fontsize=size, parse_math=False)
    save(figure, path)


def reliability_diagram(bins: Sequence[Row], calibrated: Sequence[Row], temperature: float, path: Path) -> None:
    """Plot accuracy over confidence by bin (see calibration.reliability), above the images of each bin.

    `bins` are those of the plain confidences, which get Wilson's 95 % intervals, and `calibrated` those at the
    temperature.
    """
    figure = new_figure(560)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color=GREY, linestyle="--", label="perfect calibration")
    filled = [each for each in bins if each["count"]]
    at, accuracy = ([each[name] for each in filled] for name in ("confidence", "accuracy"))
    intervals = [wilson_interval(round(each["accuracy"] * each["count"]), each["count"]) for each in filled]
    errors = np.abs(np.array(intervals).T - accuracy)
    above.errorbar(at, accuracy, errors, color=BLUE, fmt="o", capsize=3, label="as predicted, with 95 % intervals")
    cooled = [(each["confidence"], each["accuracy"]) for each in calibrated if each["count"]]
    label = f"at the temperature {temperature:.3f}"
    above.plot(*zip(*cooled, strict=True), color=VERMILLION, linestyle="none", marker="^", label=label)
    above.set(ylabel="accuracy", xlim=(0, 1.02), ylim=(-0.03, 1.03))
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)
    centres = (np.arange(len(bins)) + 0.5) / len(bins)
    below.bar(centres, [each["count"] for each in bins], 0.9 / len(bins), color=ORANGE)
    below.set(ylabel="images", xlabel="confidence: probability of the predicted class")
    for axes in (above, below):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    save(figure, path)
