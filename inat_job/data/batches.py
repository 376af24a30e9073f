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
from inat_job.data.augment import Views
from inat_job.data.cache_index import HIDDEN_FROM_TRIALS, PIXELS, Cache
from inat_job.data.imbalance import balanced_order
from inat_job.data.mixing import Mix

TakeBatch = Callable[[slice], Any]
"""Maps a slice of an order of images to their batch."""

IGNORED = -1
"""The label of rows that pad a last batch; metrics, losses and features leave them out."""

_PREFETCHED = 2
"""Batches that are prepared while another one is used."""

_COPY_BYTES = 2**26
"""Bytes that are copied to a device at a time."""


class Batch(NamedTuple):
    """Cached squares with their labels, and how their views are cut and mixed, see augment.py and mixing.py."""

    pixels: Tensor
    """uint8 (B, 3, S, S), channels last in memory."""
    labels: Tensor
    """int64 (B,)."""
    maps: Tensor
    """These three as in Views, for each image."""
    colour: Tensor | None
    erased: Tensor | None
    size: int
    """Side of the views in pixels."""
    mix: Mix | None = None


class DeviceRows:
    """The rows of a large tensor for batches on a device.

    They are resident there, or else in host memory, from where a GPU takes them through pinned memory. Nothing here
    makes a thread wait for a GPU once `place` is done.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values
        self.device = values.device

    @property
    def nbytes(self) -> int:
        """Bytes of all rows."""
        return self._values.nbytes

    @property
    def resident(self) -> bool:
        """Whether the rows are on the device of the batches."""
        return self._values.device == self.device

    def place(self, device: torch.device, resident: bool) -> None:
        """Let batches be used on `device`; a resident copy of all rows is made there once."""
        self.device = device
        if resident:
            copy = torch.empty(self._values.shape, dtype=self._values.dtype, device=device)
            step = max(1, _COPY_BYTES // self._values[0].nbytes)
            for start in range(0, len(copy), step):
                copy[start : start + step].copy_(self._values[start : start + step])
            self._values = copy

    def upload(self, values: Tensor) -> Tensor:
        """A small host tensor on the device."""
        return values.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else values

    def in_order(self, positions: Tensor) -> Callable[[slice], Tensor]:
        """A function from a slice of `positions`, int64 (n,), to those rows.

        Rows in host memory come back pinned, and the trainer copies them to the device. torch uses the pinned memory
        again once that copy is done.
        """
        order = self.upload(positions) if self.resident else positions

        def take(at: slice) -> Tensor:
            if self.resident:
                return self._values.index_select(0, order[at])
            shape = (len(order[at]), *self._values.shape[1:])
            pinned = torch.empty(shape, dtype=self._values.dtype, pin_memory=True)
            return torch.index_select(self._values, 0, order[at], out=pinned)

        return take


class PixelRows(DeviceRows):
    """The images of a cache by row number, memory-mapped or resident, with their labels."""

    def __init__(self, cache: Cache) -> None:
        shape = (len(cache.index.ids), cache.index.side, cache.index.side, 3)
        path = str(cache.folder / PIXELS)
        super().__init__(torch.from_file(path, shared=False, size=int(np.prod(shape)), dtype=torch.uint8).view(shape))
        self._labels = torch.tensor(cache.index.labels)
        self._hidden = cache.index.hidden_rows()

    def in_order(self, positions: Tensor) -> Callable[[slice], Tensor]:
        """As DeviceRows. Raises LookupError for a row that is hidden from a trial of a sweep."""
        if len(self._hidden) and np.isin(positions.numpy(), self._hidden).any():
            raise LookupError(HIDDEN_FROM_TRIALS)
        return super().in_order(positions)

    def batches(self, rows: np.ndarray, views: Views, size: int) -> TakeBatch:
        """Takes the batches of `rows` in this order, each row in its own one of the `views`.

        Raises LookupError for a row that is hidden from a trial of a sweep.
        """
        order = torch.from_numpy(rows)
        squares, labels = self.in_order(order), self.upload(self._labels[order])
        ours = views.each(self.upload)

        def take(at: slice) -> Batch:
            return Batch(squares(at).permute(0, 3, 1, 2), labels[at], *ours.each(lambda table: table[at]), size)

        return take


@dataclass(frozen=True)
class Shard:
    """The share of every batch that belongs to rank `rank` of `size`."""

    rank: int = 0
    size: int = 1


UNSHARDED = Shard()


class TrainBatches:
    """Each iteration is an epoch of `length` training batches; the partial batch at its end is dropped.

    A rank gets its share of each batch; all shares together are the batch, which does not depend on the number of
    ranks. An epoch has each row once, or with the `labels` of all rows, int64 (n,), as many rows of each class.
    `position` and `go_to` work at any step, also within an epoch, and the batches that follow are the same.
    """

    def __init__(
        self,
        take_for_epoch: Callable[[int, np.ndarray], TakeBatch],
        rows: np.ndarray,
        batch_size: int,
        length: int,
        seed: int,
        shard: Shard = UNSHARDED,
        labels: np.ndarray | None = None,
    ) -> None:
        assert batch_size % shard.size == 0
        self._labels = labels
        self._take_for_epoch, self._rows, self._shard = take_for_epoch, rows, shard
        self._batch_size, self._length, self._seed = batch_size, length, seed
        self._epoch, self._position = 0, 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        if self._position >= len(self):
            self._epoch, self._position = self._epoch + 1, 0
        order = rng.order(self._seed, self._epoch, len(self._rows))
        if self._labels is not None:
            order = balanced_order(self._seed, self._epoch, self._labels)
        shuffled = self._rows[order]
        size = self._batch_size // self._shard.size
        starts = (at * self._batch_size + self._shard.rank * size for at in range(self._position, len(self)))
        ranges = (slice(start, start + size) for start in starts)
        for batch in _prefetched(self._take_for_epoch(self._epoch, shuffled), ranges):
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
    """The given rows once, in order, including the last partial batch; `take` gets them when an iteration begins.

    Of several ranks each gets every `size`-th row, and as many rows as the others; if `full`, the last batch is as
    large as the others. Missing rows are padded with the first row, whose label is then IGNORED.
    """

    def __init__(
        self,
        take: Callable[[np.ndarray], TakeBatch],
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
        ranges = (slice(start, start + self._batch_size) for start in starts)
        for number, batch in enumerate(_prefetched(self._take(self._rows), ranges), 1):
            yield _mask_padding(batch, self._padding) if number == len(self) and self._padding else batch


def _mask_padding(batch: Any, padding: int) -> Any:
    labels = batch.labels.clone()
    labels[-padding:] = IGNORED
    return batch._replace(labels=labels)


def _prefetched(take: TakeBatch, ranges: Iterator[slice]) -> Iterator[Any]:
    """The batch of each range in order; another thread prepares the next ones."""
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1, "batches") as pool:
        try:
            for at in ranges:
                waiting.append(pool.submit(take, at))
                if len(waiting) > _PREFETCHED:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
