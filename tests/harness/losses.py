"""How much training an interrupted attempt has cost: what it did after the last checkpoint that outlived it."""

from dataclasses import dataclass

from tests.harness.runner import Ended, Event

SLACK_S = 1.0
"""What reading the clock from outside, and a machine with other work, may add."""

_TRAINING = ("train", "validate")


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
    stop = _end_of_training(ended)
    if stop is None:
        return Loss(0.0, 0, save)
    reached = max((event.step for event in (*saves, *ended.named("epoch")) if event.at <= stop), default=before)
    taken = _taken(ended, before, after)
    seconds = 0.0 if taken is None else max(0.0, stop - taken)
    return Loss(seconds, max(0, reached - after), save)


def bound(minutes: float, save: float) -> float:
    """The most seconds that a kill may cost: the interval and one save; saves that are longer follow each other."""
    return max(60 * minutes, save) + save + SLACK_S


def _taken(ended: Ended, before: int, after: int) -> float | None:
    """When the step `after` was taken; None where that is not known, since it was stored as the job died."""
    arrivals = [event for event in ended.named("checkpoint") if event.step == after]
    if arrivals:
        return arrivals[0].at - _save(arrivals[0])
    return _begin_of_training(ended) if after == before else None


def _begin_of_training(ended: Ended) -> float | None:
    return min((event.at for event in ended.named("phase") if event.fields["phase"] in _TRAINING), default=None)


def _end_of_training(ended: Ended) -> float | None:
    """When training was over or the kill came, whichever was first; None for an attempt that did not train."""
    begun = _begin_of_training(ended)
    if begun is None:
        return None
    over = [event.at for event in ended.named("phase") if event.fields["phase"] not in _TRAINING and event.at > begun]
    killed = ended.seconds if ended.signalled is None else ended.signalled
    return min([*over, killed])


def _save(event: Event) -> float:
    return float(event.fields.get("seconds", 0.0))
