"""The record of each attempt at a run, stored in the run's folder, and when a next attempt may take over."""

import dataclasses
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from inat_job.storage.base import Entry, Store
from inat_job.storage.disk import parse_json

FOLDER = "attempts"
RUNNING = "running"

Holder = Mapping[str, str]
"""What identifies the process of an attempt, such as its host and process id."""

IsGone = Callable[[Holder], bool]
"""Whether a holder is known to have ended; False if nothing is known."""


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run.

    `holder` identifies its process, `beat` counts the renewals of its lease, `lease_s` is the lease's time-out in
    seconds. `progress` is what the holder reported last, for people only, and `at` the time of that report, in seconds
    since 1970 by the holder's clock. `earlier` are the summaries of the attempts before it.
    """

    number: int
    lease_s: float
    holder: Holder
    nonce: str = ""
    started_step: int = 0
    ended_step: int = 0
    why: str = RUNNING
    beat: int = 0
    progress: Mapping[str, Any] = field(default_factory=dict)
    at: float = 0.0
    earlier: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def key(self) -> str:
        """The key of its object in the run's folder."""
        return f"{FOLDER}/{self.number}.json"

    def summary(self) -> dict[str, Any]:
        """The attempt's entry in a report; one without an end was killed."""
        why = "killed" if self.why == RUNNING else self.why
        return {"started_step": self.started_step, "ended_step": self.ended_step, "why": why}

    def to_json(self) -> bytes:
        return (json.dumps(dataclasses.asdict(self), indent=2) + "\n").encode()


def parse_attempt(number: int, data: bytes, lease_s: float) -> Attempt:
    """The record in an object; a damaged one is a running attempt of an unknown holder, with the time-out `lease_s`."""
    names = {each.name for each in dataclasses.fields(Attempt)}
    try:
        found = {name: value for name, value in parse_json(data).items() if name in names}
        attempt = Attempt(**found | {"number": number})
        valid = _is_valid(attempt)
    except (ValueError, TypeError, AttributeError):
        valid = False
    return attempt if valid else Attempt(number, lease_s, {})


def may_follow(attempt: Attempt | None, unchanged_s: float, is_gone: IsGone) -> bool:
    """Whether a contender that has seen `attempt` unchanged for `unchanged_s` seconds may take over."""
    return attempt is None or attempt.why != RUNNING or is_gone(attempt.holder) or unchanged_s >= attempt.lease_s


def next_attempt(last: Attempt | None, lease_s: float, holder: Holder, nonce: str) -> Attempt:
    """The attempt that follows `last`."""
    number, step = (last.number + 1, last.ended_step) if last else (1, 0)
    earlier = [*last.earlier, last.summary()] if last else []
    return Attempt(number, lease_s, holder, nonce, started_step=step, ended_step=step, earlier=earlier)


def list_attempts(store: Store) -> list[tuple[int, Entry]]:
    """Number and entry of each attempt's object, in ascending order."""
    numbered = [(number_of(entry.key), entry) for entry in store.list(f"{FOLDER}/")]
    return sorted(((number, entry) for number, entry in numbered if number), key=lambda each: each[0])


def number_of(key: str) -> int | None:
    """The number of the attempt whose object has this key; None for any other key of a run's folder."""
    named = re.fullmatch(rf"{FOLDER}/([1-9][0-9]{{0,8}})\.json", key)
    return int(named[1]) if named else None


def latest_attempt(store: Store, lease_s: float) -> tuple[Attempt | None, str]:
    """The attempt with the highest number, or None, and the version of its object."""
    found = list_attempts(store)
    if not found:
        return None, ""
    number, entry = found[-1]
    return parse_attempt(number, store.read(entry.key), lease_s), entry.version


def history(store: Store) -> list[dict[str, Any]]:
    """The summaries of all attempts at a run, the last included."""
    last, _ = latest_attempt(store, 1.0)
    return [*map(dict, last.earlier), last.summary()] if last else []


def _is_valid(attempt: Attempt) -> bool:
    counts = (attempt.started_step, attempt.ended_step, attempt.beat)
    texts = (attempt.why, attempt.nonce, *attempt.holder.keys(), *attempt.holder.values())
    return (
        all(_is_count(each) for each in counts)
        and all(isinstance(each, str) for each in texts)
        and isinstance(attempt.progress, dict)
        and all(value is None or isinstance(value, str | int | float) for value in attempt.progress.values())
        and is_non_negative_number(attempt.at)
        and is_non_negative_number(attempt.lease_s)
        and attempt.lease_s > 0
        and isinstance(attempt.earlier, list)
        and all(map(_is_summary, attempt.earlier))
    )


def _is_summary(value: Any) -> bool:
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
