"""The report's sheets of images: predictions, mistakes, images to look at, and what the network sees in some of them.

Images come from the decoded cache in the evaluation crop, predictions from the table; each function writes one file.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inat_job.data.augment import centre_maps, cut_views
from inat_job.data.cache_index import Cache
from inat_job.evaluation import introspection
from inat_job.evaluation.canvas import (
    Tile,
    enlarged,
    file_name,
    in_colours,
    mosaic,
    plain,
    row_of,
    save_image,
    save_sheet,
)
from inat_job.evaluation.dataset_issues import LabelIssue, NearDuplicate
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.models.five_block import FiveBlockNet

_SIDE = 128
"""Pixels of an image's side on a sheet."""

CELL_SIDE, CELL_IMAGES, _CELL_COLUMNS = 64, 256, 16
"""Side of the images of the confusion matrix's cells in pixels, how many there are at most, and how many in a row."""

_MAPS, _FILTERS, _FILTER_COLUMNS, NEURONS = 8, 64, 16, 10
_AT_A_TIME = 8
_TINY = 1e-30


@dataclass(frozen=True, eq=False)
class EvaluationImages:
    """The images of a cache as the network sees them in evaluation: a centre crop of `image_size` pixels."""

    cache: Cache
    image_size: int
    eval_crop: float

    def views(self, rows: Sequence[int]) -> Tensor:
        """The network's input for some rows of the cache: float32 (n, 3, S, S) in 0..255."""
        sizes = torch.tensor([self.cache.index.sizes[row] for row in rows])
        pixels = torch.from_numpy(np.stack([self.cache.pixels[row] for row in rows])).permute(0, 3, 1, 2)
        return cut_views(pixels, centre_maps(sizes, self.eval_crop), None, self.image_size)

    def shown(self, rows: Sequence[int], side: int = _SIDE) -> list[np.ndarray]:
        """The same views for people: uint8 (side, side, 3) each."""
        parts = (rows[start : start + 64] for start in range(0, len(rows), 64))
        return [image for part in parts for image in as_shown(self.views(part), side)]


def as_shown(views: Tensor, side: int = _SIDE) -> list[np.ndarray]:
    """Views, float (n, 3, S, S) in 0..255, as images uint8 (side, side, 3)."""
    resized = F.interpolate(views, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
    return list(resized.clamp(0, 255).round().byte().permute(0, 2, 3, 1).numpy())


def predictions(images: EvaluationImages, table: PredictionTable, path: Path) -> None:
    """Images in three columns, each with its true and predicted class, and marked as right or wrong."""
    shown = images.shown(table.rows.tolist())
    tiles = [Tile(image, (*_verdict(table, at),), _is_right(table, at)) for at, image in enumerate(shown)]
    save_sheet(tiles, path, columns=3)


def _is_right(table: PredictionTable, at: int) -> bool:
    return bool(table.predicted[at] == table.labels[at])


def _verdict(table: PredictionTable, at: int) -> tuple[str, ...]:
    label, predicted = int(table.labels[at]), int(table.predicted[at])
    p = table.probabilities[at]
    return (
        f"true: {plain(table.classes[label])}",
        f"predicted: {plain(table.classes[predicted])}",
        f"p(predicted) {p[predicted]:.3f}",
        *([] if label == predicted else [f"p(true) {p[label]:.3f}"]),
        file_name(table.ids[at]),
    )


def label_issues(images: EvaluationImages, table: PredictionTable, issues: Sequence[LabelIssue], path: Path) -> None:
    """Images whose label is likely wrong, with the label and the likely class."""
    shown = images.shown([int(table.rows[issue.at]) for issue in issues])
    tiles = []
    for image, issue in zip(shown, issues, strict=True):
        label, p = int(table.labels[issue.at]), table.probabilities[issue.at]
        lines = (
            f"label: {plain(table.classes[label])}",
            f"likely: {plain(table.classes[issue.likely])}",
            f"p(label) {p[label]:.3f}",
            f"p(likely) {p[issue.likely]:.3f}",
            file_name(table.ids[issue.at]),
        )
        tiles.append(Tile(image, lines))
    save_sheet(tiles, path, columns=3)


def near_duplicates(
    images: EvaluationImages, pairs: Sequence[NearDuplicate], split_of: dict[int, str], path: Path
) -> None:
    """Pairs of look-alike images side by side; `split_of` names the split of a row."""
    index = images.cache.index
    shown = images.shown([row for pair in pairs for row in (pair.row, pair.other)])
    tiles = []
    for at, pair in enumerate(pairs):
        lines = [f"{pair.bits} of 256 bits differ"]
        for row in (pair.row, pair.other):
            lines += [f"{split_of[row]}: {plain(index.classes[index.labels[row]])}", file_name(index.ids[row])]
        tiles.append(Tile(row_of(shown[2 * at : 2 * at + 2]), tuple(lines)))
    save_sheet(tiles, path, columns=2)


def cells(images: EvaluationImages, table: PredictionTable, path: Path) -> int:
    """Images of the confusion matrix's cells on one sheet without text, and an index of it beside it, `path`.json.

    Each cell shows those with the largest loss; one on the diagonal shows at most two. There are at most CELL_IMAGES,
    taken from the cells in turn, and `count` says how many a cell has. Returns how many images are shown.
    """
    chosen = _of_cells(table)[:CELL_IMAGES]
    shown = images.shown([int(table.rows[at]) for at in chosen], CELL_SIDE)
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for number, at in enumerate(chosen):
        true, predicted = int(table.labels[at]), int(table.predicted[at])
        count = int(((table.labels == true) & (table.predicted == predicted)).sum())
        cell = found.setdefault((true, predicted), {"true": true, "predicted": predicted, "count": count, "images": []})
        y, x = (CELL_SIDE * each for each in divmod(number, _CELL_COLUMNS))
        p = {
            name: round(float(table.probabilities[at, of]), 4)
            for name, of in (("true", true), ("predicted", predicted))
        }
        cell["images"].append({"id": table.ids[at], "x": x, "y": y, "p": p})
    save_image(mosaic(shown, min(_CELL_COLUMNS, len(shown)), gap=0), path)
    index = {"file": path.name, "side": CELL_SIDE, "cells": [found[key] for key in sorted(found)]}
    path.with_suffix(".json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return len(shown)


def _of_cells(table: PredictionTable) -> list[int]:
    """Positions in the table: the worst image of every cell, then the second of every cell, and so on."""
    taken: dict[tuple[int, int], int] = {}
    ranked = []
    for at in np.argsort(-table.losses, kind="stable"):
        cell = (int(table.labels[at]), int(table.predicted[at]))
        rank = taken[cell] = taken.get(cell, -1) + 1
        if cell[0] != cell[1] or rank < 2:
            ranked.append((rank, int(at)))
    return [at for _, at in sorted(ranked, key=lambda each: each[0])]


def filters(network: nn.Module, path: Path) -> int:
    """The first layer's filters, at most 64; returns how many there are."""
    weights = introspection.first_filters(network).permute(0, 2, 3, 1).numpy()
    scaled = [_around_grey(each) for each in weights[:_FILTERS]]
    side = max(48, weights.shape[1])
    shown = mosaic([enlarged(each, side) for each in scaled], _FILTER_COLUMNS)
    save_sheet([Tile(shown, (f"{len(weights)} filters", f"{weights.shape[1]} x {weights.shape[2]}"))], path, columns=1)
    return len(weights)


def _around_grey(values: np.ndarray) -> np.ndarray:
    """Values of any shape as uint8: 0 is grey, and all but the largest 0.5 % are within the range."""
    largest = max(float(np.quantile(np.abs(values), 0.995)), _TINY)
    return np.asarray(np.round(127.5 + 127.5 * np.clip(values / largest, -1, 1)).astype(np.uint8))


def feature_maps(images: EvaluationImages, network: FiveBlockNet, row: int, path: Path) -> None:
    """The strongest maps of each block's activation for one image of the cache."""
    view = images.views([row])
    side = 96
    tiles = [Tile(as_shown(view, _SIDE)[0], ("the image", file_name(images.cache.index.ids[row])))]
    for number, maps in enumerate(introspection.feature_maps(network, view, list(network.blocks)), 1):
        each = maps[0].numpy()
        strongest = np.argsort(-each.mean(axis=(1, 2)), kind="stable")[:_MAPS]
        shown = [in_colours(enlarged(_to_unit(each[channel]), side)) for channel in strongest]
        lines = (f"block {number}", f"{len(each)} maps", f"of {each.shape[1]} x {each.shape[2]}")
        tiles.append(Tile(row_of(shown), lines))
    save_sheet(tiles, path, columns=1)


def _to_unit(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    return np.asarray((values - low) / max(high - low, _TINY))


def guided_backpropagation(
    images: EvaluationImages, network: FiveBlockNet, rows: Sequence[int], seed: int, path: Path
) -> int:
    """Neurons of block five, chosen by `seed` among those that fire, each for the image of `rows` that excites it most.

    Returns how many there are: ten, if as many fire.
    """
    views = images.views(rows)
    (maps,) = introspection.feature_maps(network, views, [network.blocks[-1]])
    neurons, excited = _excited(maps.numpy(), seed)
    if not len(neurons):
        return 0
    used = views[excited]
    gradients = introspection.guided_gradients(network, used, network.blocks[-1], torch.from_numpy(neurons))
    tiles = []
    for image, gradient, neuron, at in zip(as_shown(used), gradients, neurons, excited, strict=True):
        shown = as_shown(torch.from_numpy(_around_grey(gradient.numpy())).float()[None])[0]
        channel, y, x = (int(each) for each in neuron)
        lines = (
            f"channel {channel}",
            f"row {y}, column {x}",
            f"activation {float(maps[at, channel, y, x]):.3g}",
            file_name(images.cache.index.ids[rows[at]]),
        )
        tiles.append(Tile(row_of([image, shown]), lines))
    save_sheet(tiles, path, columns=2)
    return len(tiles)


def _excited(maps: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Neurons (n, 3) that some image excites, channels first all different, and the image that does so most, (n,)."""
    channels, height, width = maps.shape[1:]
    draws = np.random.default_rng(seed)
    at = np.stack([draws.permutation(channels) for _ in range(height * width)])  # each round has every channel once
    places = np.stack([draws.permutation(height * width) for _ in range(channels)], axis=1)
    order = np.stack([at, *np.divmod(np.take_along_axis(places, at, axis=1), width)], axis=-1).reshape(-1, 3)
    values = maps[:, order[:, 0], order[:, 1], order[:, 2]]
    firing = np.flatnonzero(values.max(axis=0) > 0)[:NEURONS]
    return order[firing], values[:, firing].argmax(axis=0)


def grad_cam(
    images: EvaluationImages, network: nn.Module, table: PredictionTable, labels: Sequence[int], path: Path
) -> None:
    """For each of some classes, the image with the least loss and that with the largest, with Grad-CAM over them."""
    chosen = [(int(at), word) for label in labels for at, word in _best_and_worst(table, label)]
    positions = [at for at, _ in chosen]
    maps, layer = [], introspection.map_layer(network, images.views(table.rows[positions[:1]].tolist()))
    for start in range(0, len(positions), _AT_A_TIME):
        some = positions[start : start + _AT_A_TIME]
        classes = torch.from_numpy(table.predicted[some])
        maps += list(introspection.grad_cam(network, images.views(table.rows[some].tolist()), classes, layer))
    tiles = []
    for image, cam, (at, word) in zip(images.shown(table.rows[positions].tolist()), maps, chosen, strict=True):
        lines = (f"{word} of {plain(table.classes[int(table.labels[at])], 20)}", *_verdict(table, at)[1:])
        tiles.append(Tile(row_of([image, _overlaid(image, cam)]), lines, _is_right(table, at)))
    scale = np.linspace(0, 1, 2 * _SIDE)[None].repeat(24, axis=0)
    tiles.append(Tile(_coloured(np.full_like(scale, 150), scale), ("from nothing to the most",)))
    save_sheet(tiles, path, columns=2)


def _best_and_worst(table: PredictionTable, label: int) -> list[tuple[int, str]]:
    of_class = np.flatnonzero(table.labels == label)
    losses = table.losses[of_class]
    return [(of_class[losses.argmin()], "best"), (of_class[losses.argmax()], "worst")]


def _overlaid(image: np.ndarray, cam: Tensor) -> np.ndarray:
    """An image in grey under the colours of its map, which are the stronger the larger the map's value is."""
    side = len(image)
    values = F.interpolate(cam[None, None], size=(side, side), mode="bilinear", align_corners=False)[0, 0].numpy()
    return _coloured(0.85 * image.mean(axis=2), values)


def _coloured(grey: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Brightnesses, (h, w) in 0..255, under colours for values in 0..1: those of 0 leave the grey as it is."""
    cover = 0.8 * values[..., None]
    return np.asarray(np.round((1 - cover) * grey[..., None] + cover * in_colours(values, "plasma")).astype(np.uint8))
