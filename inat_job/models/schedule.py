"""The learning rate over the steps of a run: a warm-up, then half a cosine to zero, wherever the end is moved."""

import math
from dataclasses import dataclass, replace
from typing import Self

MOST_WARMUP = 2000
"""Steps of warm-up at most: AdamW's second moments, with beta2 = 0.999, have settled after 2 / (1 - beta2) steps (Ma
and Yarats, On the adequacy of untuned warmup for adaptive optimization, 2019)."""


@dataclass(frozen=True)
class Schedule:
    """The learning rate of a run of `total` steps, of which the share `warmup` warms up.

    `cuts` says after which steps the run's end was moved and to which step, at most `total`, in the order of the steps.
    From then on a step has the rate of a run that ends there, as if it had always been planned so: where a run is
    lengthened, the rate rises again.
    """

    total: int
    warmup: float
    cuts: tuple[tuple[int, int], ...] = ()

    @property
    def end(self) -> int:
        """The steps of the run."""
        return self.cuts[-1][1] if self.cuts else self.total

    def end_at(self, step: int) -> int:
        """The steps of the run as they were planned when a step began, by the cuts until then."""
        return next((end for at, end in reversed(self.cuts) if at <= step), self.total)

    def ending_at(self, end: int, decided: int) -> Self:
        """The schedule with its end at `end`, decided after `decided` steps."""
        return self if end == self.end else replace(self, cuts=(*self.cuts, (decided, end)))

    def factor(self, step: int) -> float:
        """Learning rate at a step over the peak rate, 0..1.

        The rate of the step right after a decision is that of the plan before it, since the optimiser has it already.
        """
        return learning_rate_factor(step, self.end_at(step - 1), self.warmup)


def learning_rate_factor(step: int, total: int, warmup: float) -> float:
    """Learning rate at a step over the peak rate, 0..1.

    It rises linearly over the share `warmup` of the steps, at most MOST_WARMUP of them, then falls to zero along half a
    cosine (Loshchilov and Hutter, SGDR, 2016).
    """
    rise = max(1, min(round(warmup * total), MOST_WARMUP, total - 1))
    if step < rise:
        return min(1.0, (step + 1) / rise)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total - rise))))
