"""How many steps fit into `--max-time`: the pace of an attempt, and where a run ends.

Rank 0 decides, at few moments, and checkpoints hold what it decided: so a resumed run has the same learning rates.
"""

import math
import time
from collections import deque
from dataclasses import dataclass
from statistics import median

clock = time.monotonic

_RESERVE = 0.02
"""Share of the time that is left unplanned, as no estimate is exact."""

_WORTH = 1.05
"""A run is lengthened if what is left grows by this factor: otherwise every epoch's noise would move its end."""

_FIRST_WITHIN_EPOCH = 16
_RECENT = 3


@dataclass(frozen=True)
class Pace:
    """Seconds of an optimiser step, and of what comes after an epoch's last step, such as validation."""

    step_s: float
    rest_s: float


class PaceMeter:
    """Measures the pace of an attempt as the median of its last epochs, each without its first step, which compiles."""

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=_RECENT)
        self._rests: deque[float] = deque(maxlen=_RECENT)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._count, self._first, self._last = 0, 0.0, 0.0

    def end_step(self) -> None:
        """To be called at the end of each optimiser step."""
        self._last = clock()
        self._first = self._first if self._count else self._last
        self._count += 1

    def end_epoch(self) -> None:
        """To be called when the next epoch may begin."""
        if self._count > 1:
            self._steps.append(self._step_s())
        if self._count:
            self._rests.append(clock() - self._last)
        self._begin_epoch()

    def pace(self, used_s: float, step: int) -> Pace:
        """The pace; where nothing is measured yet, the mean of the `step` steps so far, which took `used_s`."""
        steps = [*self._steps, *([self._step_s()] if self._count > 1 else [])]
        return Pace(
            median(steps[-_RECENT:]) if steps else used_s / max(1, step), median(self._rests) if self._rests else 0.0
        )

    def _step_s(self) -> float:
        return (self._last - self._first) / (self._count - 1)


def is_moment(step: int) -> bool:
    """Whether it is decided after this step of a run, though no epoch ends with it: 16, 32, 64 and so on."""
    return step >= _FIRST_WITHIN_EPOCH and step & (step - 1) == 0


def end_that_fits(step: int, end: int, total: int, per_epoch: int, used_s: float, limit_s: float, pace: Pace) -> int:
    """The steps of a run that takes no longer than `limit_s`: at most `total`, decided after `step` steps in `used_s`.

    A run that was planned to take `end` steps is shortened as soon as they take too long, and lengthened where that is
    worth it, as after a slow first epoch. Within an epoch of `per_epoch` steps both wait for the epoch's end, if the
    run goes on until then. A run that has reached its end is not begun again.
    """
    in_epoch, epoch_s = step % per_epoch, per_epoch * pace.step_s + pace.rest_s
    left_s = max(0.0, (1 - _RESERVE) * limit_s - used_s)
    epochs, rest_s = divmod(left_s, epoch_s) if epoch_s > 0 else (total, 0.0)
    more = int(epochs) * per_epoch + math.floor(max(0.0, rest_s - pace.rest_s) / pace.step_s if pace.step_s else 0)
    fits, epoch_end = min(total, step + more), step - in_epoch + per_epoch
    can_wait = in_epoch > 0 and min(fits, end) >= epoch_end
    not_worth_it = end < fits < step + _WORTH * (end - step)
    return end if step >= end or can_wait or not_worth_it else fits
