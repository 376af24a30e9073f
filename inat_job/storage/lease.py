"""One writer per run: a lease made of numbered objects, one per attempt, whose number is the fencing token.

The job that creates `attempts/<n>.json`, which a conditional write allows only once, holds the run as long as it keeps
rewriting that object and no higher number exists. Clocks of different machines are never compared: a lease is stale
once a contender has seen it unchanged for its time-out.
"""

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from inat_job import events, signals, watchdog
from inat_job.errors import ConflictError, JobError, NoPermissionError, TransientError
from inat_job.job_settings import LONGEST_LEASE_S
from inat_job.signals import Stop
from inat_job.storage import attempts, probe
from inat_job.storage.attempts import Attempt, Holder, IsGone, latest_attempt, list_attempts
from inat_job.storage.base import Store
from inat_job.storage.threads import start_daemon

RENEWALS = 4
"""Times that a holder renews its lease within the time-out."""

REPORT_EVERY_S = 30.0
"""Seconds between two log lines while this job waits for another one."""

SETTLE_S = 2.0
"""Seconds that the winner on a store without conditional writes waits before it trusts its win."""

ReadProgress = Callable[[], Mapping[str, Any]]
"""Returns the progress that each renewal reports."""

_KEPT = 2
_END_TIMEOUT_S = 1.2
"""Together with the threads that a download leaves, less than the 2 s in which a stopped job ends."""
_BRIEFLY_S = 5.0


class LeaseError(TransientError):
    """Another job holds the run or has taken it over; continuing would mix the two."""


class Lease:
    """A held lease, renewed by a background thread until `end`.

    `conditional` says whether the store honours the condition that an object must not exist yet.
    """

    def __init__(self, store: Store, attempt: Attempt, conditional: bool, read_progress: ReadProgress = dict) -> None:
        self._store, self._attempt, self._read_progress = store, attempt, read_progress
        self.conditional = conditional
        self._writing, self._updating = threading.Lock(), threading.Lock()
        self._ended = threading.Event()
        self._lost, self._why = False, "finished"
        self._renewing = threading.Thread(target=self._renew_until_ended, name="lease", daemon=True)
        self._renewing.start()

    @property
    def key(self) -> str:
        """The key of the lease's object, to be kept when the run is cleared."""
        return self._attempt.key

    @property
    def number(self) -> int:
        """The attempt's number, which is the fencing token."""
        return self._attempt.number

    def forget_earlier(self) -> None:
        """Drop the earlier attempts from the history, because their run was deleted."""
        self._update(earlier=[], started_step=0, ended_step=0)

    def started(self, step: int) -> None:
        """Record the step that the attempt starts from."""
        self._update(started_step=step, ended_step=step)

    def reached(self, step: int) -> None:
        """Record that this step is stored."""
        self._update(ended_step=max(step, self._attempt.ended_step))

    def history(self, why: str) -> list[dict[str, Any]]:
        """The summaries of all attempts, this one ending with the reason `why` unless `end` gives another."""
        self._why = why
        return [*map(dict, self._attempt.earlier), replace(self._attempt, why=why).summary()]

    def raise_if_lost(self) -> None:
        """Raise LeaseError if the lease is known to be lost, without a request."""
        if self._lost:
            raise LeaseError(
                f"Another job has taken over {self._store.uri}, because this one had not renewed its lease for "
                f"{self._attempt.lease_s:g} s: let that job continue."
            )

    def check(self) -> None:
        """Ask the store, and raise LeaseError if a higher number exists.

        Called before each object of the run appears (storage/fenced.py).

        Without conditional writes another job may have the same number; then the last writer holds the lease.
        """
        overtaken = any(number > self._attempt.number for number, _ in list_attempts(self._store))
        self._lost = self._lost or overtaken or not (self.conditional or _is_ours(self._store, self._attempt))
        self.raise_if_lost()

    def check_briefly(self) -> None:
        """`check`, unless the store takes longer than a job that ends with an error should wait."""
        with contextlib.suppress(TimeoutError):
            start_daemon(self.check, "lease").result(_BRIEFLY_S)

    def end(self, why: str = "") -> None:
        """Release the lease with the reason for the attempt's end. An unreachable store is no error: the lease expires
        anyway.
        """
        self._ended.set()
        self._update(why=why or self._why, progress=dict(self._read_progress()), at=time.time())
        last = self._renewing
        if not self._lost:
            last = threading.Thread(target=self._write_end, name="lease", daemon=True)
            last.start()
        last.join(_END_TIMEOUT_S)  # or else its draft may stay in the run's folder

    def _update(self, **changes: Any) -> None:
        with self._updating:  # called by several threads
            self._attempt = replace(self._attempt, **changes)

    def _renew_until_ended(self) -> None:
        failing = False
        while not self._ended.wait(self._attempt.lease_s / RENEWALS):
            try:
                self._renew()
                failing = False
            except LeaseError:
                return
            except JobError as error:
                if not failing:
                    events.warn(f"The lease on {self._store.uri} is not renewed yet: {error}")
                failing = True

    def _renew(self) -> None:
        with self._writing:
            if not self._ended.is_set():
                progress = dict(self._read_progress())
                self._update(beat=self._attempt.beat + 1, progress=progress, at=time.time())
                self._store.put(self.key, self._attempt.to_json(), confirm=self.check)

    def _write_end(self) -> None:
        with self._writing:
            try:
                self._store.put(self.key, self._attempt.to_json(), confirm=self.check)
            except LeaseError:
                return
            except JobError as error:
                events.warn(f"The end of this attempt could not be recorded: {error}")


@watchdog.waiting()
def acquire(
    store: Store,
    background: Store,
    seconds: float,
    holder: Holder,
    is_gone: IsGone,
    stop: Stop,
    read_progress: ReadProgress = dict,
) -> Lease:
    """Become the only writer of the run in `store`; the lease's own thread uses `background` for its requests.

    Waits until the present holder ends or its lease expires after `seconds`. Raises LeaseError if the holder turns out
    to be alive, Preempted when `stop` turns true.
    """
    attempt, seen = _latest_attempt(store, seconds)
    begun = seen_at = time.monotonic()
    said_at = -REPORT_EVERY_S
    while True:
        now = time.monotonic()
        if attempts.may_follow(attempt, now - seen_at, is_gone):
            ours = attempts.next_attempt(attempt, seconds, holder, secrets.token_hex(8))
            ours = replace(ours, progress=dict(read_progress()), at=time.time())
            conditional = _create(store, ours)
            if _is_ours(store, ours) and _is_newest(store, ours):
                _delete_drafts(store, ours)
                _delete_old(store, ours)
                return Lease(background, ours, conditional, read_progress)
        elif attempt and seen_at > begun and now - begun >= attempt.lease_s:
            raise LeaseError(_held_message(store, attempt))
        elif attempt and now - said_at >= REPORT_EVERY_S:
            said_at = now
            events.emit("waiting", message=_waiting_message(store, attempt, now - seen_at))
        signals.pause(min(1.0, seconds / 20), stop, "waiting for another job of the same run to end")
        attempt, version = _latest_attempt(store, seconds)
        if version != seen:
            seen, seen_at = version, time.monotonic()


def _latest_attempt(store: Store, seconds: float) -> tuple[Attempt | None, str]:
    """The newest attempt, whose time-out counts as far as one may be set."""
    attempt, version = latest_attempt(store, seconds)
    return attempt and replace(attempt, lease_s=min(attempt.lease_s, LONGEST_LEASE_S)), version


def _delete_drafts(store: Store, ours: Attempt) -> None:
    """Delete what earlier attempts were storing: those that were only frozen can then finish none of their writes."""
    try:
        store.delete_drafts(lambda key: (attempts.number_of(key) or 0) < ours.number)
    except (NoPermissionError, ConflictError) as error:
        events.warn(f"The unfinished uploads to {store.uri} stay: if a frozen job goes on, it may finish one. {error}")


def _is_newest(store: Store, ours: Attempt) -> bool:
    """Whether no higher number exists; a contender may have been frozen until its number was long overtaken."""
    newest = all(number <= ours.number for number, _ in list_attempts(store))
    if not newest:
        store.delete(ours.key)
    return newest


def _delete_old(store: Store, ours: Attempt) -> None:
    for number, entry in list_attempts(store):
        if number <= ours.number - _KEPT:
            store.delete(entry.key)


def _create(store: Store, attempt: Attempt) -> bool:
    """Create the attempt's object unless it exists; returns whether the store honours that condition.

    If it does not, the last writer holds the lease, which all contenders see if they wait long enough.
    """
    if probe.create(store, attempt.key, attempt.to_json()):
        return True
    events.warn(
        f"{store.uri} takes no conditional writes: if two jobs start at the same moment, both may write to the run."
    )
    time.sleep(SETTLE_S)
    return False


def _is_ours(store: Store, attempt: Attempt) -> bool:
    return attempts.parse_attempt(attempt.number, store.read(attempt.key), attempt.lease_s).nonce == attempt.nonce


def _host(attempt: Attempt) -> str:
    return attempt.holder.get("host", "another machine")


def _waiting_message(store: Store, attempt: Attempt, silent_s: float) -> str:
    left_s = max(0.0, attempt.lease_s - silent_s)
    return (
        f"Waiting for attempt {attempt.number} on {_host(attempt)}, which holds {store.uri}: this job takes over if it "
        f"stays silent for {left_s:.0f} s more, and ends if it is alive."
    )


def _held_message(store: Store, attempt: Attempt) -> str:
    host = _host(attempt)
    return (
        f"{store.uri} is held by attempt {attempt.number}, which is alive on {host}: wait for it to end, or give this "
        "job a --run-id of its own."
    )
