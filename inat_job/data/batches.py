"""Batches from the decoded cache: a batch is a pure function of seed, epoch and step, in training and in evaluation."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from inat_job.data import rng
from inat_job.data.cache_index import PIXELS, Cache

TakeRows = Callable[[np.ndarray], Any]
"""From row numbers of the cache, int64 (B,), to their batch."""

IGNORED = -1
"""The label of rows that pad a last batch; metrics, losses and features leave them out."""

_PREFETCHED = 2
"""Batches that are prepared while another one is used."""

_COPY_BYTES = 2**26
"""Bytes that are copied to a device at a time."""


class Batch(NamedTuple):
    """Cached squares with their labels; `draws` is None without augmentation."""

    pixels: Tensor
    """uint8 (B, 3, S, S), channels last in memory."""
    labels: Tensor
    """int64 (B,)."""
    sizes: Tensor
    """float32 (B, 2): original width and height."""
    draws: Tensor | None
    """float32 (B, len(rng.COLUMNS)), uniform in [0, 1)."""


class PixelRows:
    """The images of a cache by row number: memory-mapped, or on a device once `reside` has copied them there.

    `pinned` puts batches in pinned memory, which a GPU copies while it computes.
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
        """Bytes of all pixels."""
        return self._pixels.nbytes

    @property
    def device(self) -> torch.device:
        """The device of the batches."""
        return self._pixels.device

    def reside(self, device: torch.device) -> None:
        """Copy everything to a device, from which all later batches come."""
        resident = torch.empty(self._pixels.shape, dtype=torch.uint8, device=device)
        step = max(1, _COPY_BYTES // self._pixels[0].nbytes)
        for start in range(0, len(resident), step):
            resident[start : start + step].copy_(self._pixels[start : start + step])
        self._pixels, self._pinned = resident, False
        self._labels, self._sizes = self._labels.to(device), self._sizes.to(device)

    def take(self, rows: np.ndarray, table: np.ndarray | None) -> Batch:
        """The batch of these rows; `table` has the draws of every row of the cache, or is None."""
        picked = torch.from_numpy(rows).to(self.device)
        draws = None if table is None else torch.from_numpy(table[rows]).to(self.device)
        squares = self._pixels.index_select(0, picked)
        if self._pinned:
            squares = squares.pin_memory()
        return Batch(squares.permute(0, 3, 1, 2), self._labels[picked], self._sizes[picked], draws)


@dataclass(frozen=True)
class Shard:
    """The share of every batch that belongs to rank `rank` of `size`."""

    rank: int = 0
    size: int = 1


UNSHARDED = Shard()


class TrainBatches:
    """Each iteration is an epoch of `length` training batches; the partial batch at its end is dropped.

    A rank gets its share of each batch; all shares together are the batch, which does not depend on the number of
    ranks. `position` and `go_to` work at any step, also within an epoch, and the batches that follow are the same.
    """

    def __init__(
        self,
        take_for_epoch: Callable[[int], TakeRows],
        rows: np.ndarray,
        batch_size: int,
        length: int,
        seed: int,
        shard: Shard = UNSHARDED,
    ) -> None:
        assert batch_size % shard.size == 0
        self._take_for_epoch, self._rows, self._shard = take_for_epoch, rows, shard
        self._batch_size, self._length, self._seed = batch_size, length, seed
        self._epoch, self._position = 0, 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        if self._position >= len(self):
            self._epoch, self._position = self._epoch + 1, 0
        shuffled = self._rows[rng.order(self._seed, self._epoch, len(self._rows))]
        size = self._batch_size // self._shard.size
        starts = (at * self._batch_size + self._shard.rank * size for at in range(self._position, len(self)))
        row_groups = (shuffled[start : start + size] for start in starts)
        for batch in _prefetched(self._take_for_epoch(self._epoch), row_groups):
            # Advanced first: a state saved while this batch is in use refers to the step after it.
            self._position += 1
            yield batch

    def position(self) -> dict[str, int]:
        """The epoch and the position in it; the batch in use counts as done."""
        return {"epoch": self._epoch, "position": self._position}

    def go_to(self, epoch: int, position: int) -> None:
        """Continue from a position, as if the batches before it had been used."""
        self._epoch, self._position = epoch, position


class EvalBatches:
    """The given rows once, in order, including the last partial batch; `take` is called when an iteration begins.

    Of several ranks each gets every `size`-th row, and as many rows as the others; if `full`, the last batch is as
    large as the others. Missing rows are padded with the first row, whose label is then IGNORED.
    """

    def __init__(
        self,
        take: Callable[[], TakeRows],
        rows: np.ndarray,
        batch_size: int,
        shard: Shard = UNSHARDED,
        full: bool = False,
    ) -> None:
        self._batch_size = max(1, batch_size // shard.size)
        ours, length = rows[shard.rank :: shard.size], math.ceil(len(rows) / shard.size)
        if full:
            length = math.ceil(length / self._batch_size) * self._batch_size
        self._padding = length - len(ours)
        self._take, self._rows = take, np.concatenate([ours, np.repeat(rows[:1], self._padding)])

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self._batch_size)

    def __iter__(self) -> Iterator[Any]:
        starts = range(0, len(self._rows), self._batch_size)
        row_groups = (self._rows[start : start + self._batch_size] for start in starts)
        for number, batch in enumerate(_prefetched(self._take(), row_groups), 1):
            yield _mask_padding(batch, self._padding) if number == len(self) and self._padding else batch


def _mask_padding(batch: Any, padding: int) -> Any:
    labels = batch.labels.clone()
    labels[-padding:] = IGNORED
    return batch._replace(labels=labels)


def _prefetched(take: TakeRows, row_groups: Iterator[np.ndarray]) -> Iterator[Any]:
    """The batch of each group of rows in order; another thread prepares the next ones."""
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1, "batches") as pool:
        try:
            for rows in row_groups:
                waiting.append(pool.submit(take, rows))
                if len(waiting) > _PREFETCHED:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
