"""The record of each attempt at a run, as it lies in the run's folder, and when another attempt may come after it."""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inat_job.storage.base import Entry, Store

FOLDER = "attempts"
RUNNING = "running"

Holder = Mapping[str, str]
Gone = Callable[[Holder], bool]
"""Tells whether a holder is known to have ended; False where nothing is known."""


@dataclass(frozen=True)
class Attempt:
    """One attempt; `earlier` are its predecessors, as a report tells them.

    `standing` is what the holder last said of its work, for people alone, and `at` when that was, in seconds since 1970
    by the holder's clock.
    """

    number: int
    lease_s: float
    holder: Holder
    nonce: str = ""
    started_step: int = 0
    ended_step: int = 0
    why: str = RUNNING
    beat: int = 0
    standing: Mapping[str, Any] = field(default_factory=dict)
    at: float = 0.0
    earlier: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Its object in the run's folder."""
        return f"{FOLDER}/{self.number}.json"

    def told(self) -> dict[str, Any]:
        """The attempt as a report tells it; one that nobody ended was killed."""
        why = "killed" if self.why == RUNNING else self.why
        return {"started_step": self.started_step, "ended_step": self.ended_step, "why": why}

    def text(self) -> bytes:
        """What its object holds."""
        return (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode()


def parse(number: int, data: bytes, lease_s: float) -> Attempt:
    """The record in an object; one that cannot be read is of a holder of whom nothing is known."""
    names = {each.name for each in dataclasses.fields(Attempt)}
    try:
        found = {name: value for name, value in json.loads(data).items() if name in names}
        attempt = Attempt(**found | {"number": number})
        sound = _is_sound(attempt)
    except (ValueError, TypeError, AttributeError, RecursionError):
        sound = False
    return attempt if sound else Attempt(number, lease_s, {})


def may_follow(attempt: Attempt | None, unchanged_s: float, gone: Gone) -> bool:
    """Whether a contender that has seen `attempt` unchanged for so long may come after it."""
    return attempt is None or attempt.why != RUNNING or gone(attempt.holder) or unchanged_s >= attempt.lease_s


def after(last: Attempt | None, lease_s: float, holder: Holder, nonce: str) -> Attempt:
    """The attempt that follows `last`."""
    number, step = (last.number + 1, last.ended_step) if last else (1, 0)
    earlier = [*last.earlier, last.told()] if last else []
    return Attempt(number, lease_s, holder, nonce, started_step=step, ended_step=step, earlier=earlier)


def entries(store: Store) -> list[tuple[int, Entry]]:
    """Number and entry of each attempt's object, in the order of the numbers."""
    named = [(entry.key[len(FOLDER) + 1 :].removesuffix(".json"), entry) for entry in store.list(f"{FOLDER}/")]
    return sorted(((int(name), entry) for name, entry in named if name.isdecimal()), key=lambda each: each[0])


def newest(store: Store, lease_s: float) -> tuple[Attempt | None, str]:
    """The attempt with the highest number, or None, and the version of its object."""
    found = entries(store)
    if not found:
        return None, ""
    number, entry = found[-1]
    return parse(number, store.read(entry.key), lease_s), entry.version


def history(store: Store) -> list[dict[str, Any]]:
    """What became of a run's attempts, the last included."""
    last, _ = newest(store, 1.0)
    return [*map(dict, last.earlier), last.told()] if last else []


def _is_sound(attempt: Attempt) -> bool:
    counts = (attempt.started_step, attempt.ended_step, attempt.beat)
    texts = (attempt.why, attempt.nonce, *attempt.holder.keys(), *attempt.holder.values())
    return (
        all(_is_count(each) for each in counts)
        and all(isinstance(each, str) for each in texts)
        and isinstance(attempt.standing, dict)
        and all(value is None or isinstance(value, str | int | float) for value in attempt.standing.values())
        and is_non_negative_number(attempt.at)
        and is_non_negative_number(attempt.lease_s)
        and attempt.lease_s > 0
        and isinstance(attempt.earlier, list)
        and all(map(_is_told, attempt.earlier))
    )


def _is_told(value: Any) -> bool:
    steps = ("started_step", "ended_step")
    return (
        isinstance(value, dict)
        and set(value) == {*steps, "why"}
        and all(_is_count(value[step]) for step in steps)
        and isinstance(value["why"], str)
    )


def is_non_negative_number(value: Any) -> bool:
    """Whether it is an int or a float (no bool) of at least 0 that a float can hold: not infinite, not NaN."""
    return type(value) in (int, float) and 0 <= value <= sys.float_info.max


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
