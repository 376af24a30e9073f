"""How much training an interrupted attempt has lost: what it did after the last checkpoint that survived it."""

from dataclasses import dataclass
from itertools import pairwise

from tests.harness.runner import EndedJob, Event

SLACK_S = 1.0
"""Seconds that measuring from outside, on a busy machine, may add."""


@dataclass(frozen=True)
class Loss:
    """Seconds of training to be done again, at least `steps` steps; `save` are the seconds of the attempt's longest
    save."""

    seconds: float
    steps: int
    save: float


def measure_loss(ended: EndedJob, before: int, after: int) -> Loss:
    """What an attempt lost that found the step `before` stored and left the step `after` stored.

    These are the steps of the store's pointer, so this is what another machine would lose.
    """
    saves = ended.named("checkpoint")
    save = max((_save_s(event) for event in saves), default=0.0)
    stop = ended.seconds if ended.signalled is None else ended.signalled
    reached = max((event.step for event in (*saves, *ended.named("epoch")) if event.at <= stop), default=before)
    seconds = _trained(ended, _taken_at(ended, before, after, stop), stop)
    return Loss(seconds, max(0, reached - after), save)


def largest_loss(minutes: float, save: float) -> float:
    """The most seconds that a kill may cost: the interval and one save, or two saves if they take longer."""
    return max(60 * minutes, save) + save + SLACK_S


def _taken_at(ended: EndedJob, before: int, after: int, stop: float) -> float:
    """When the checkpoint `after` was taken; the end if it was not logged, since it was stored as the job died."""
    stored = [event for event in ended.named("checkpoint") if event.step == after]
    if stored:
        return stored[0].at - _save_s(stored[0])
    return 0.0 if after == before else stop


def _trained(ended: EndedJob, since: float, until: float) -> float:
    """Seconds of training steps between two times; validation does not count."""
    phases = [*((event.at, str(event.fields["phase"])) for event in ended.named("phase")), (until, "")]
    spans = [(begin, end) for (begin, name), (end, _) in pairwise(phases) if name == "train"]
    return sum(max(0.0, min(end, until) - max(begin, since)) for begin, end in spans)


def _save_s(event: Event) -> float:
    return float(event.fields.get("seconds", 0.0))
