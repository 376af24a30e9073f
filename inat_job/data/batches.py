"""Batches of rows: a batch is a pure function of seed, epoch and step, in training as in evaluation."""

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from inat_job.data import rng

Take = Callable[[np.ndarray], Any]
"""From rows of the cache, int64 (B,), to the batch that they are."""

TakeOf = Callable[[int], Take]
"""From an epoch to how its batches are taken."""

IGNORED = -1
"""The label of a row that fills a rank's last batch up, and counts nowhere."""

_AHEAD = 2
"""Batches that are made while another one is worked on."""


@dataclass(frozen=True)
class Share:
    """The part of every batch that rank `rank` of `size` takes."""

    rank: int = 0
    size: int = 1


WHOLE = Share()


class TrainBatches:
    """An epoch of `length` training batches at each iteration; what is left over of the images is dropped.

    A rank gets its share of each: together they are the batch, which depends on nobody's number.

    `position` is asked for and gone to at any step, also in the middle of an epoch: what follows is the same.
    """

    def __init__(
        self, take_of: TakeOf, rows: np.ndarray, batch_size: int, length: int, seed: int, share: Share = WHOLE
    ) -> None:
        assert batch_size % share.size == 0
        self._take_of, self._rows, self._share = take_of, rows, share
        self._batch_size, self._length, self._seed = batch_size, length, seed
        self._epoch, self._position = 0, 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Any]:
        if self._position >= len(self):
            self._epoch, self._position = self._epoch + 1, 0
        shuffled = self._rows[rng.order(self._seed, self._epoch, len(self._rows))]
        size = self._batch_size // self._share.size
        firsts = (at * self._batch_size + self._share.rank * size for at in range(self._position, len(self)))
        parts = (shuffled[first : first + size] for first in firsts)
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
    """Given rows once, in order, the last partial batch included; `take` is asked for as the first one is.

    Of several ranks each has every `size`-th row, and as many as the others: where the rows run out, the first one
    again, whose label is IGNORED.
    """

    def __init__(self, take: Callable[[], Take], rows: np.ndarray, batch_size: int, share: Share = WHOLE) -> None:
        own = rows[share.rank :: share.size]
        self._missing = math.ceil(len(rows) / share.size) - len(own)
        self._take, self._rows = take, np.concatenate([own, rows[: self._missing]])
        self._batch_size = max(1, batch_size // share.size)

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self._batch_size)

    def __iter__(self) -> Iterator[Any]:
        starts = range(0, len(self._rows), self._batch_size)
        batches = _ahead(self._take(), (self._rows[start : start + self._batch_size] for start in starts))
        for number, batch in enumerate(batches, 1):
            yield _ignoring(batch, self._missing) if number == len(self) and self._missing else batch


def _ignoring(batch: Any, last: int) -> Any:
    labels = batch.labels.clone()
    labels[-last:] = IGNORED
    return batch._replace(labels=labels)


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
