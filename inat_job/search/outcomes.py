"""What became of a trial, and what the sweep does next: pure policy.

Preempted, failed, pruned and done are four different things. Only the last three end a trial; a preempted one is
continued by whichever worker comes next, and is never counted twice.
"""

from dataclasses import dataclass
from enum import Enum

from inat_job.errors import BadDataError, NoPermissionError, Preempted, TransientError, UsageError
from inat_job.run.trial_link import Ended

MOST_FAILURES = 3
"""Times that a trial may fail for a reason that another try may cure."""


class Next(Enum):
    """What happens to a trial after its process has ended."""

    DONE = "done"
    PRUNED = "pruned"
    FAILED = "failed"
    CONTINUE = "continue"
    END_SWEEP = "end the sweep"


_OF_ALL_TRIALS = {error.exit_code for error in (UsageError, BadDataError, NoPermissionError)}
"""Codes of faults that every other trial would have too: the data, the permissions, the command."""


def next_of(ended: Ended, pruned: bool, failures: int) -> Next:
    """What follows a trial's end; `pruned` if the worker asked it to stop, `failures` with this one."""
    if ended.code == 0:
        return Next.DONE
    if ended.held:
        return Next.CONTINUE
    if ended.code == Preempted.exit_code:
        return Next.PRUNED if pruned else Next.CONTINUE
    if ended.code in _OF_ALL_TRIALS:
        return Next.END_SWEEP
    if ended.code == TransientError.exit_code or ended.code > 128:  # killed, as for memory
        return Next.FAILED if failures >= MOST_FAILURES else Next.CONTINUE
    return Next.FAILED


@dataclass(frozen=True)
class Limits:
    """When a sweep ends: `trials` in all, and the others if they are set."""

    trials: int
    max_time: float | None = None
    target: float | None = None
    patience: int | None = None


@dataclass(frozen=True)
class Standing:
    """A sweep so far: the values of its ended trials in the order of their numbers, None for a failed or pruned one,
    and the seconds since its first trial began."""

    values: tuple[float | None, ...]
    seconds: float

    @property
    def best(self) -> float | None:
        """The best value, or None."""
        return max((value for value in self.values if value is not None), default=None)

    @property
    def since_best(self) -> int:
        """How many trials have ended since the best one."""
        best = self.best
        return len(self.values) - 1 - self.values.index(best) if best is not None else len(self.values)


def why_ended(standing: Standing, limits: Limits) -> str:
    """Why the sweep is over; empty while it is not."""
    best = standing.best
    if len(standing.values) >= limits.trials:
        return f"all {limits.trials} trials have ended"
    if limits.target is not None and best is not None and best >= limits.target:
        return f"a trial reached {limits.target:g}"
    if limits.patience is not None and standing.since_best >= limits.patience:
        return f"{limits.patience} trials brought no better one"
    if limits.max_time is not None and standing.seconds >= limits.max_time:
        return f"{limits.max_time:g} s are over"
    return ""
