"""Batches out of the memory map: a batch is a pure function of seed, epoch and step, in training as in evaluation."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inat_job.data import draws
from inat_job.data.index import Cache


class Batch(NamedTuple):
    """Cached squares and what is known of them; `draws` is None where nothing is augmented."""

    pixels: Tensor
    """uint8 (B, 3, S, S), channels last in memory."""
    labels: Tensor
    """int64 (B,)."""
    sizes: Tensor
    """float32 (B, 2): original width and height."""
    draws: Tensor | None
    """float32 (B, len(draws.COLUMNS)), uniform in [0, 1)."""


class _Rows:
    """Takes batches of given rows out of a cache."""

    def __init__(self, cache: Cache) -> None:
        self._pixels = cache.pixels
        self._labels = torch.tensor(cache.index.labels)
        self._sizes = torch.tensor(cache.index.sizes, dtype=torch.float32)

    def take(self, rows: np.ndarray, table: np.ndarray | None) -> Batch:
        squares = torch.from_numpy(self._pixels[rows]).permute(0, 3, 1, 2)
        picked = torch.from_numpy(rows)
        drawn = None if table is None else torch.from_numpy(table[rows])
        return Batch(squares, self._labels[picked], self._sizes[picked], drawn)


class TrainBatches:
    """An epoch of `length` training batches at each iteration; what is left over of the pictures is dropped.

    `position` is asked for and gone to at any step, also in the middle of an epoch: what follows is the same.
    """

    def __init__(
        self, cache: Cache, rows: np.ndarray, batch_size: int, length: int, *, seed: int, augment: bool
    ) -> None:
        self._take = _Rows(cache).take
        self._all = len(cache.index.ids)
        self._rows, self._batch_size, self._length = rows, batch_size, length
        self._seed, self._augment = seed, augment
        self._epoch, self._position = 0, 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        if self._position >= len(self):
            self._epoch, self._position = self._epoch + 1, 0
        shuffled = self._rows[draws.order(self._seed, self._epoch, len(self._rows))]
        table = draws.augmentation(self._seed, self._epoch, self._all) if self._augment else None
        while self._position < len(self):
            start = self._position * self._batch_size
            # Advanced first: whoever asks for the state while this batch is in work means the step after it.
            self._position += 1
            yield self._take(shuffled[start : start + self._batch_size], table)

    def position(self) -> dict[str, int]:
        """Where the epoch stands, the batch in work counted as done."""
        return {"epoch": self._epoch, "position": self._position}

    def go_to(self, epoch: int, position: int) -> None:
        """Go on as if the batches before had been given out."""
        self._epoch, self._position = epoch, position


class EvalBatches:
    """Given rows once, in order, never augmented, the last partial batch included."""

    def __init__(self, cache: Cache, rows: np.ndarray, batch_size: int) -> None:
        self._take = _Rows(cache).take
        self._rows, self._batch_size = rows, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for start in range(0, len(self._rows), self._batch_size):
            yield self._take(self._rows[start : start + self._batch_size], None)
