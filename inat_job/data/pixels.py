"""Takes rows out of the decoded cache: from its memory map, or from the device's own memory where it fits there."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from inat_job.data.cache_index import PIXELS, Cache

_CHUNK = 2**26
"""Bytes that are copied to a device at once."""


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


class PixelRows:
    """The images of a cache, by row. They are read as they are asked for, until `reside` has copied all of them.

    `pinned` gives batches that a GPU copies while it computes.
    """

    def __init__(self, cache: Cache, pinned: bool = False) -> None:
        shape = (len(cache.index.ids), cache.index.side, cache.index.side, 3)
        path = str(cache.folder / PIXELS)
        self._pixels = torch.from_file(path, shared=False, size=int(np.prod(shape)), dtype=torch.uint8).view(shape)
        self._labels = torch.tensor(cache.index.labels)
        self._sizes = torch.tensor(cache.index.sizes, dtype=torch.float32)
        self._pinned = pinned

    @property
    def nbytes(self) -> int:
        """What the pixels take."""
        return self._pixels.nbytes

    @property
    def device(self) -> torch.device:
        """Where batches come from."""
        return self._pixels.device

    def reside(self, device: torch.device) -> None:
        """Copy everything to a device; batches then come from there."""
        there = torch.empty(self._pixels.shape, dtype=torch.uint8, device=device)
        step = max(1, _CHUNK // self._pixels[0].nbytes)
        for start in range(0, len(there), step):
            there[start : start + step].copy_(self._pixels[start : start + step])
        self._pixels, self._pinned = there, False
        self._labels, self._sizes = self._labels.to(device), self._sizes.to(device)

    def take(self, rows: np.ndarray, table: np.ndarray | None) -> Batch:
        """The batch of these rows; `table` has the draws of every row of the cache."""
        picked = torch.from_numpy(rows).to(self.device)
        drawn = None if table is None else torch.from_numpy(table[rows]).to(self.device)
        squares = self._pixels.index_select(0, picked)
        if self._pinned:
            squares = squares.pin_memory()
        return Batch(squares.permute(0, 3, 1, 2), self._labels[picked], self._sizes[picked], drawn)
