"""How much training an interrupted attempt has cost: what it did after the last checkpoint that outlived it."""

from dataclasses import dataclass
from itertools import pairwise

from tests.harness.runner import Ended, Event

SLACK_S = 1.0
"""What reading the clock from outside, and a machine with other work, may add."""


@dataclass(frozen=True)
class Loss:
    """Seconds of training to be done again, of steps at least so many; `save` is the longest save of the attempt."""

    seconds: float
    steps: int
    save: float


def loss_of(ended: Ended, before: int, after: int) -> Loss:
    """What an attempt lost that found the step `before` stored and left the step `after`.

    The store's pointer is asked, so that this is what another machine would lose.
    """
    saves = ended.named("checkpoint")
    save = max((_save(event) for event in saves), default=0.0)
    stop = ended.seconds if ended.signalled is None else ended.signalled
    reached = max((event.step for event in (*saves, *ended.named("epoch")) if event.at <= stop), default=before)
    seconds = _trained(ended, _taken(ended, before, after, stop), stop)
    return Loss(seconds, max(0, reached - after), save)


def bound(minutes: float, save: float) -> float:
    """The most seconds that a kill may cost: the interval and one save; saves that are longer follow each other."""
    return max(60 * minutes, save) + save + SLACK_S


def _taken(ended: Ended, before: int, after: int, stop: float) -> float:
    """When the step `after` was taken; the end where nobody told, since it was stored as the job died."""
    arrivals = [event for event in ended.named("checkpoint") if event.step == after]
    if arrivals:
        return arrivals[0].at - _save(arrivals[0])
    return 0.0 if after == before else stop


def _trained(ended: Ended, since: float, until: float) -> float:
    """Seconds of training steps within a time; validating again costs no step."""
    phases = [*((event.at, str(event.fields["phase"])) for event in ended.named("phase")), (until, "")]
    spans = [(begin, end) for (begin, name), (end, _) in pairwise(phases) if name == "train"]
    return sum(max(0.0, min(end, until) - max(begin, since)) for begin, end in spans)


def _save(event: Event) -> float:
    return float(event.fields.get("seconds", 0.0))
