"""When and how an attempt is killed: drawn from a seeded generator, over all of a run and all of its phases."""

import random
import signal
import time
from dataclasses import dataclass, replace

from tests.harness.runner import HANG_S, EndedJob, Event, Job

PHASES = ("start", "pull", "prepare", "build", "train", "validate", "final-validation", "test", "pictures", "upload")


@dataclass(frozen=True)
class Kill:
    """A signal to the process, its group or one of its ranks, some seconds after its start or after an event.

    `moment` is a phase or "checkpoint"; `occurrence` counts from 1. `then_kill` is the number of seconds after a
    SIGTERM at which SIGKILL follows, as impatient platforms do.
    """

    number: signal.Signals
    group: bool
    seconds: float
    moment: str = ""
    occurrence: int = 1
    then_kill: float | None = None
    rank: int | None = None

    @property
    def description(self) -> str:
        """A few words for the log."""
        after = f"{self.moment}#{self.occurrence}+" if self.moment else ""
        again = f", KILL {self.then_kill:.2f} s later" if self.then_kill is not None else ""
        target = " group" if self.group else "" if self.rank is None else f" rank {self.rank}"
        return f"{self.number.name}{target} at {after}{self.seconds:.2f} s{again}"

    @property
    def gentle(self) -> bool:
        """Whether the job has time to end by itself."""
        return self.number is signal.SIGTERM and self.then_kill is None


def draw_kill(rng: random.Random, startup: float, expected: float, ranks: int = 1) -> Kill:
    """A kill for an attempt that needs `startup` seconds until it trains and `expected` in all.

    One in eight comes before training, three in eight at a moment, and the others anywhere between start-up and end.
    With several ranks, half of the kills are SIGKILL to one of them.
    """
    kill = _draw(rng, startup, expected)
    if ranks > 1 and rng.random() < 0.5:
        return replace(kill, number=signal.SIGKILL, group=False, then_kill=None, rank=rng.randrange(ranks))
    return kill


def _draw(rng: random.Random, startup: float, expected: float) -> Kill:
    number = rng.choice((signal.SIGKILL, signal.SIGTERM))
    group = rng.random() < 0.5
    then_kill = rng.uniform(0.0, 1.0) if number is signal.SIGTERM and rng.random() < 0.25 else None
    choice = rng.randrange(8)
    if choice == 0:
        return Kill(number, group, rng.uniform(0.0, startup), then_kill=then_kill)
    if choice < 4:
        moment, occurrence = rng.choice((*PHASES, "checkpoint")), rng.randint(1, 4)
        once = moment not in ("train", "validate", "checkpoint")
        return Kill(number, group, rng.uniform(0.0, 0.3), moment, 1 if once else occurrence, then_kill)
    return Kill(number, group, rng.uniform(startup, max(expected, startup + 1.0)), then_kill=then_kill)


def execute(kill: Kill, job: Job) -> EndedJob:
    """Kill the job as planned, unless it ends before, and wait for its end."""
    if _wait_for_moment(kill, job) and job.kill(kill.number, kill.group, kill.rank) and kill.then_kill is not None:
        time.sleep(kill.then_kill)
        job.kill(signal.SIGKILL, kill.group)
    return job.end()


def _wait_for_moment(kill: Kill, job: Job) -> bool:
    """Wait for the moment of the kill; returns whether it came."""
    if not kill.moment:
        return job.sleep_until(kill.seconds)
    left = kill.occurrence

    def is_the_moment(event: Event) -> bool:
        nonlocal left
        left -= kill.moment in (event.name, event.fields.get("phase") if event.name == "phase" else None)
        return left == 0

    event = job.wait_for(is_the_moment, HANG_S)
    return event is not None and job.sleep_until(event.at + kill.seconds)
