"""All pictures of a run, with their titles and alternative texts: the files in plots/, and plots/pictures.json.

Pictures are made of what the run has anyway, its predictions, metrics and decoded images; nothing evaluates a split
again. A picture that cannot be drawn is only a warning.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from inat_job import events, signals
from inat_job.errors import JobError
from inat_job.evaluation import calibration, dataset_issues, image_sheets, metrics, plots
from inat_job.evaluation.canvas import plain
from inat_job.evaluation.image_sheets import EvaluationImages
from inat_job.evaluation.plots import NO_MARKS, CurveMarks
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.models.five_block import FiveBlockNet
from inat_job.models.flops import network_size
from inat_job.signals import Stop

INDEX = "pictures.json"

_GRID, _LISTED, _PAIRS, _CLASSES, _CANDIDATES = 30, 12, 8, 20, 64
_MOST_MACS = 1e12
"""Multiply-adds that Grad-CAM may take, about ten seconds of a CPU; a larger network is shown for fewer classes."""


_PLAIN = "Probabilities are before the temperature."


@dataclass(frozen=True)
class Picture:
    """A file of plots/: its name without suffix, a title, a text for those who do not see it, its path, and a note that
    explains it to those who do."""

    name: str
    title: str
    alt: str
    path: Path
    note: str = ""


@dataclass(frozen=True, eq=False)
class PictureInputs:
    """What the pictures are made of. `splits` has each split's rows of the cache, `rows` those of metrics.jsonl.

    `table` has the predictions of the test images, and of the validation images if they are held out.
    """

    network: nn.Module
    images: EvaluationImages
    splits: Mapping[str, np.ndarray]
    table: PredictionTable
    seed: int
    temperature: float = 1.0
    rows: Sequence[Mapping[str, Any]] = ()
    marks: CurveMarks = NO_MARKS

    @cached_property
    def test(self) -> PredictionTable:
        """The predictions of the test images."""
        return self.table.split("test")

    def draws(self, purpose: int) -> np.random.Generator:
        """The random numbers of one picture, which depend on no other's."""
        return np.random.default_rng([self.seed, purpose])


Drawer = Callable[[PictureInputs, Path], Picture | None]


def draw(inputs: PictureInputs, folder: Path, stop: Stop = signals.never) -> list[Picture]:
    """Draw all pictures into `folder`, and write pictures.json: name, title, alt, note and file of each, in order.

    Raises Preempted on the stop flag. Files that are not in the list are the rest of a picture that failed.
    """
    found = []
    progress = events.progress("pictures", transient=True)
    for number, drawer in enumerate(_DRAWERS):
        signals.check(stop, "drawing the pictures")
        progress(number, len(_DRAWERS))
        try:
            picture = drawer(inputs, folder)
        except JobError:
            raise
        except Exception as error:
            events.warn(f"The picture {drawer.__name__.strip('_')} could not be drawn ({error!r}).")
        else:
            found += [picture] if picture else []
    progress(len(_DRAWERS), len(_DRAWERS))
    (folder / INDEX).write_text(json.dumps([_as_dict(each) for each in found], indent=2) + "\n", encoding="utf-8")
    return found


def _as_dict(picture: Picture) -> dict[str, str]:
    values = {name: str(value) for name, value in dataclasses.asdict(picture).items() if name != "path"}
    return {**values, "file": picture.path.name}


def _curves(inputs: PictureInputs, folder: Path) -> Picture | None:
    if not inputs.rows:
        return None
    path = folder / "curves.png"
    plots.learning_curves(inputs.rows, path, inputs.marks)
    validated = [row for row in inputs.rows if "val_accuracy" in row]
    alt = "Line plots over optimiser steps: training loss and learning rate."
    if validated:
        best = max(row["val_accuracy"] for row in validated)
        alt = (
            f"Four line plots over optimiser steps; the validation accuracy of {len(validated)} epochs peaks at "
            f"{best:.3f}."
        )
    return Picture("curves", "Learning curves", alt, path)


def _confusion(inputs: PictureInputs, folder: Path) -> Picture | None:
    test, path = inputs.test, folder / "confusion.png"
    counts = metrics.confusion_matrix(test)
    plots.confusion_matrix(counts.tolist(), test.classes, path)
    wrong = counts * (1 - np.eye(len(counts), dtype=int))
    alt = f"{counts.trace()} of {counts.sum()} test images are on the diagonal, which is right."
    if wrong.any():
        true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
        names = plain(test.classes[true]), plain(test.classes[predicted])
        alt += f" The most frequent mistake is {names[0]} taken for {names[1]}: {wrong.max()} images."
    return Picture("confusion", "Confusion matrix of the test images", alt, path)


def _reliability(inputs: PictureInputs, folder: Path) -> Picture | None:
    test, path = inputs.test, folder / "reliability.png"
    cooled = calibration.tempered(test, inputs.temperature)
    bins, calibrated = calibration.reliability(test), calibration.reliability(cooled)
    plots.reliability_diagram(bins, calibrated, inputs.temperature, path)
    before, after = (calibration.expected_calibration_error(each) for each in (test, cooled))
    alt = (
        "Accuracy over confidence of the test images, in 15 bins. The expected calibration error is "
        f"{before:.3f}, and {after:.3f} at the temperature {inputs.temperature:.3f}."
    )
    return Picture("reliability", "Reliability of the confidence", alt, path)


def _predictions(inputs: PictureInputs, folder: Path) -> Picture | None:
    test, path = inputs.test, folder / "predictions.jpg"
    some = test.take(inputs.draws(0).permutation(len(test))[:_GRID])
    title = "Predictions of test images"
    note = f"{len(some)} of {len(test)} test images, chosen by the seed {inputs.seed}. {_PLAIN}"
    image_sheets.predictions(inputs.images, some, path)
    right = int((some.predicted == some.labels).sum())
    alt = f"{len(some)} images; {right} predictions are right, {len(some) - right} are wrong."
    return Picture("predictions", title, alt, path, note)


def _mistakes(inputs: PictureInputs, folder: Path) -> Picture | None:
    test, path = inputs.test, folder / "mistakes.jpg"
    wrong = np.flatnonzero(test.predicted != test.labels)
    if not len(wrong):
        return None
    some = test.take(wrong[np.argsort(-test.losses[wrong], kind="stable")][:_LISTED])
    title = "Most confident mistakes"
    note = (
        f"The {len(some)} wrong predictions with the largest loss, of {len(wrong)} wrong ones of {len(test)}. {_PLAIN}"
    )
    image_sheets.predictions(inputs.images, some, path)
    return Picture("mistakes", title, _confusions(some), path, note)


def _confusions(table: PredictionTable) -> str:
    names = [
        (plain(table.classes[a]), plain(table.classes[b])) for a, b in zip(table.labels, table.predicted, strict=True)
    ]
    return "; ".join(f"{true} taken for {predicted}" for true, predicted in names[:_LISTED]) + "."


def _cells(inputs: PictureInputs, folder: Path) -> Picture | None:
    path = folder / "cells.jpg"
    shown = image_sheets.cells(inputs.images, inputs.test, path)
    alt = f"{shown} small test images; cells.json says which cell of the confusion matrix each is in."
    return Picture("cells", "Images of the confusion matrix's cells", alt, path)


def _label_errors(inputs: PictureInputs, folder: Path) -> Picture | None:
    held_out, path = inputs.table.split("val"), folder / "label-errors.jpg"
    issues = [] if dataset_issues.too_weak_for_labels(held_out) else dataset_issues.label_issues(held_out)
    if not issues:
        return None
    title, shown = "Likely label errors", issues[:_LISTED]
    note = (
        f"{len(issues)} of {len(held_out)} validation images, by confident learning (Northcutt et al., 2021); the "
        f"first {len(shown)} by normalised margin. The model may be wrong instead."
    )
    image_sheets.label_issues(inputs.images, held_out, shown, path)
    alt = f"{len(shown)} images, each with its label, the likelier class and the probabilities of both."
    return Picture("label-errors", title, alt, path, note)


def _near_duplicates(inputs: PictureInputs, folder: Path) -> Picture | None:
    path = folder / "near-duplicates.jpg"
    pairs = dataset_issues.near_duplicates(inputs.images.cache, dict(inputs.splits))
    if not pairs:
        return None
    title, shown = "Near-duplicates between splits", pairs[:_PAIRS]
    note = (
        f"{len(pairs)} test and validation images look like one of another split, by difference hashes (Krawetz, 2013) "
        f"that differ in at most {dataset_issues.NEAR_BITS} of 256 bits; the {len(shown)} nearest pairs."
    )
    split_of = {int(row): name for name, rows in inputs.splits.items() for row in rows}
    image_sheets.near_duplicates(inputs.images, shown, split_of, path)
    alt = f"{len(shown)} pairs of images, each with the split and the class of both."
    return Picture("near-duplicates", title, alt, path, note)


def _filters(inputs: PictureInputs, folder: Path) -> Picture | None:
    path, title = folder / "filters.png", "Filters of the first layer"
    note = "Grey is zero; each filter is scaled by its largest weights."
    count = image_sheets.filters(inputs.network, path)
    alt = f"{count} small colour patterns, the weights of the first convolution."
    return Picture("filters", title, alt, path, note)


def _feature_maps(inputs: PictureInputs, folder: Path) -> Picture | None:
    network, path, title = inputs.network, folder / "feature-maps.png", "Feature maps of the five blocks"
    if not isinstance(network, FiveBlockNet):
        return None
    row = int(inputs.draws(1).choice(inputs.test.rows))
    note = (
        f"A test image chosen by the seed {inputs.seed}; of each block, behind its activation, the maps with the "
        "largest mean, each from its least value (dark) to its largest (bright)."
    )
    image_sheets.feature_maps(inputs.images, network, row, path)
    alt = "An image, and in five rows below it small maps, which are coarser from block to block."
    return Picture("feature-maps", title, alt, path, note)


def _guided_backpropagation(inputs: PictureInputs, folder: Path) -> Picture | None:
    network, path = inputs.network, folder / "guided-backpropagation.jpg"
    if not isinstance(network, FiveBlockNet):
        return None
    candidates = inputs.draws(2).permutation(inputs.test.rows)[:_CANDIDATES]
    title = "Guided backpropagation of neurons of block five"
    note = (
        f"Neurons that fire, chosen by the seed {inputs.seed}; each with the image that excites it most among "
        f"{len(candidates)} test images, and what in it does so (Springenberg et al., 2015); grey is zero."
    )
    seed = int(inputs.draws(3).integers(2**31))
    count = image_sheets.guided_backpropagation(inputs.images, network, candidates.tolist(), seed, path)
    alt = f"{count} pairs of an image and its gradient."
    return Picture("guided-backpropagation", title, alt, path, note) if count else None


def _grad_cam(inputs: PictureInputs, folder: Path) -> Picture | None:
    test, path, title = inputs.test, folder / "grad-cam.jpg", "Grad-CAM of the best and the worst image of each class"
    labels = _explained(inputs)
    which = "each class" if len(labels) == len(set(test.labels)) else f"{len(labels)} classes chosen by the seed"
    note = (
        f"The test images of {which} with the least and the largest loss, and beside each, in colour over grey, what "
        "in it speaks for the predicted class (Selvaraju et al., 2017); each map has its own scale."
    )
    image_sheets.grad_cam(inputs.images, inputs.network, test, labels, path)
    alt = f"{2 * len(labels)} images, each beside its map; in grey what does not speak for the predicted class."
    return Picture("grad-cam", title, alt, path, note)


def _explained(inputs: PictureInputs) -> list[int]:
    """The classes that Grad-CAM is shown for: all that have test images, or as many as it may take time for."""
    macs = network_size(inputs.network, inputs.images.image_size).macs
    most = min(
        _CLASSES, max(1, int(_MOST_MACS / (6 * macs + 1)))
    )  # two images, and a backward pass is two forward ones
    present = np.unique(inputs.test.labels)
    return sorted(inputs.draws(4).permutation(present)[:most].tolist())


_DRAWERS: tuple[Drawer, ...] = (
    _curves,
    _confusion,
    _reliability,
    _predictions,
    _mistakes,
    _cells,
    _label_errors,
    _near_duplicates,
    _filters,
    _feature_maps,
    _guided_backpropagation,
    _grad_cam,
)
