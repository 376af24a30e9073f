"""What became of a trial, and what the sweep does next: pure policy.

Preempted, failed, pruned and done are four different things. Only the last three end a trial; a preempted one is
continued by whichever worker comes next, and is never counted twice.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from inat_job.errors import BadDataError, NoPermissionError, Preempted, TransientError
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


def next_of(ended: Ended, pruned: bool, failures: int) -> Next:
    """What follows a trial's end; `pruned` if the worker asked it to stop, `failures` with this one.

    Missing permissions and images that cannot be had would fail every other trial too, so they end the sweep, and the
    trial is resumed once they are repaired. Any other bad file is the trial's own: its weights, a checkpoint. So are
    settings that its network or weights refuse: those that hold for all trials are checked before the first.
    """
    if ended.code == 0:
        return Next.DONE
    if ended.held:
        return Next.CONTINUE
    if ended.code == Preempted.exit_code:
        return Next.PRUNED if pruned else Next.CONTINUE
    if ended.code == NoPermissionError.exit_code or (ended.code == BadDataError.exit_code and ended.on_images):
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
class SearchState:
    """A sweep so far: the values of its ended trials in the order of their numbers, None for a failed or pruned one,
    and the seconds in which trials were at work."""

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


def why_ended(state: SearchState, limits: Limits) -> str:
    """Why the sweep is over; empty while it is not."""
    best = state.best
    if len(state.values) >= limits.trials:
        return f"all {limits.trials} trials have ended"
    if limits.target is not None and best is not None and best >= limits.target:
        return f"a trial reached {limits.target:g}"
    if limits.patience is not None and state.since_best >= limits.patience:
        return f"{limits.patience} trials brought no better one"
    if limits.max_time is not None and state.seconds >= limits.max_time:
        return f"trials were at work for {limits.max_time:g} s"
    return ""


def how_to_go_on(state: SearchState, limits: Limits) -> str:
    """What lets a search go on that is over before a trial was done."""
    if len(state.values) >= limits.trials:
        return "raise --trials, or start another sweep with --pruner none"
    if limits.patience is not None and state.since_best >= limits.patience:
        return "raise --patience, or start another sweep with --pruner none"
    if limits.max_time is not None and state.seconds >= limits.max_time:
        return "raise --max-time, and the trials continue where they stopped"
    return "start another sweep with a wider --space, or with --pruner none"


def covered_s(intervals: Iterable[Sequence[float]]) -> float:
    """The seconds that at least one of the intervals covers, each a start and an end in seconds."""
    covered, until = 0.0, float("-inf")
    for start, end in sorted((each[0], each[1]) for each in intervals):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered
