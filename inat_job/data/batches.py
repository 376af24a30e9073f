"""Batches of rows: a batch is a pure function of seed, epoch and step, in training as in evaluation."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from inat_job.data import draws

Take = Callable[[np.ndarray], Any]
"""From rows of the cache, int64 (B,), to the batch that they are."""

TakeOf = Callable[[int], Take]
"""From an epoch to how its batches are taken."""

_AHEAD = 2
"""Batches that are made while another one is worked on."""


class TrainBatches:
    """An epoch of `length` training batches at each iteration; what is left over of the pictures is dropped.

    `position` is asked for and gone to at any step, also in the middle of an epoch: what follows is the same.
    """

    def __init__(self, take_of: TakeOf, rows: np.ndarray, batch_size: int, length: int, seed: int) -> None:
        self._take_of, self._rows = take_of, rows
        self._batch_size, self._length, self._seed = batch_size, length, seed
        self._epoch, self._position = 0, 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        if self._position >= len(self):
            self._epoch, self._position = self._epoch + 1, 0
        shuffled = self._rows[draws.order(self._seed, self._epoch, len(self._rows))]
        starts = range(self._position * self._batch_size, len(self) * self._batch_size, self._batch_size)
        parts = (shuffled[start : start + self._batch_size] for start in starts)
        for batch in _ahead(self._take_of(self._epoch), parts):
            # Advanced first: whoever asks for the state while this batch is in work means the step after it.
            self._position += 1
            yield batch

    def position(self) -> dict[str, int]:
        """Where the epoch stands, the batch in work counted as done."""
        return {"epoch": self._epoch, "position": self._position}

    def go_to(self, epoch: int, position: int) -> None:
        """Go on as if the batches before had been given out."""
        self._epoch, self._position = epoch, position


class EvalBatches:
    """Given rows once, in order, the last partial batch included; `take` is asked for as the first one is."""

    def __init__(self, take: Callable[[], Take], rows: np.ndarray, batch_size: int) -> None:
        self._take, self._rows, self._batch_size = take, rows, batch_size

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self._batch_size)

    def __iter__(self) -> Iterator[Any]:
        starts = range(0, len(self._rows), self._batch_size)
        return _ahead(self._take(), (self._rows[start : start + self._batch_size] for start in starts))


def _ahead(take: Take, parts: Iterator[np.ndarray]) -> Iterator[Any]:
    """The batches of the parts in order, the next ones being made by another thread meanwhile."""
    waiting: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(1, "batches") as pool:
        try:
            for part in parts:
                waiting.append(pool.submit(take, part))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)
