"""One writer for a run: a lease made of numbered objects, one for each attempt, whose number is the fencing token.

Whoever creates `attempts/<n>.json`, which a conditional write lets only one do, holds the run, as long as it keeps
writing that object anew and nobody has a higher number. No clock is compared with another machine's: a lease is stale
when a contender has seen it unchanged for the lease's time-out.
"""

import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from inat_job import events, signals
from inat_job.errors import ConflictError, JobError, PreconditionFailed, TransientError
from inat_job.signals import Stop
from inat_job.storage.attempts import Attempt, Gone, Holder, after, entries, may_follow, newest, parse
from inat_job.storage.base import Store

BEATS = 4
"""Times that a holder writes its object within the time-out."""

SETTLE_S = 2.0
"""How long a winner on a store without conditional writes waits before it believes that it won."""

Tell = Callable[[], Mapping[str, Any]]

_KEPT = 2
_END_PATIENCE_S = 1.5


class LeaseError(TransientError):
    """Another job holds the run, or has taken it over: to go on would mix the two."""


class Lease:
    """A lease that is held, and kept by a thread of its own until `end`.

    `conditional` says whether the store heeds the condition that an object must not exist yet; `tell` gives what each
    beat says of the work.
    """

    def __init__(self, store: Store, attempt: Attempt, conditional: bool, tell: Tell = dict) -> None:
        self._store, self._attempt, self._tell = store, attempt, tell
        self.conditional = conditional
        self._lock, self._noting = threading.Lock(), threading.Lock()
        self._over = threading.Event()
        self._lost, self._why = False, "finished"
        threading.Thread(target=self._live, name="lease", daemon=True).start()

    @property
    def key(self) -> str:
        """The object that is the lease; whoever clears the run leaves it."""
        return self._attempt.key

    def begins_anew(self) -> None:
        """Forget the attempts before: the run that they were at is deleted."""
        self._note(earlier=[], started_step=0, ended_step=0)

    def started(self, step: int) -> None:
        """The attempt goes on from this step."""
        self._note(started_step=step, ended_step=step)

    def reached(self, step: int) -> None:
        """This step is stored."""
        self._note(ended_step=max(step, self._attempt.ended_step))

    def history(self, why: str) -> list[dict[str, Any]]:
        """The attempts so far, this one ending for the reason `why`, unless `end` is told another."""
        self._why = why
        return [*map(dict, self._attempt.earlier), replace(self._attempt, why=why).told()]

    def guard(self) -> None:
        """Raise LeaseError if the lease is known to be lost; asks nobody."""
        if self._lost:
            raise LeaseError(
                f"Another job has taken over {self._store.uri}, since this one was not heard of for "
                f"{self._attempt.lease_s:g} s: let that one go on."
            )

    def check(self) -> None:
        """Ask the store, and raise LeaseError if somebody has a higher number: before anything is moved.

        Where no condition keeps others from it, somebody may have this number too, and then who wrote last has it.
        """
        outrun = any(number > self._attempt.number for number, _ in entries(self._store))
        self._lost = self._lost or outrun or not (self.conditional or _is_there(self._store, self._attempt))
        self.guard()

    def end(self, why: str = "") -> None:
        """Let go, saying why the attempt ended. Trouble with the store is no matter: silence ends a lease too."""
        self._over.set()
        self._note(why=why or self._why, standing=dict(self._tell()), at=time.time())
        if not self._lost:
            last = threading.Thread(target=self._say_the_end, name="lease", daemon=True)
            last.start()
            last.join(_END_PATIENCE_S)

    def _note(self, **changes: Any) -> None:
        with self._noting:  # several threads do
            self._attempt = replace(self._attempt, **changes)

    def _live(self) -> None:
        """Write the object anew from time to time, whatever trouble the store is in."""
        troubled = False
        while not self._over.wait(self._attempt.lease_s / BEATS):
            try:
                self._beat()
                troubled = False
            except LeaseError:
                return
            except JobError as error:
                if not troubled:
                    events.warn(f"The lease on {self._store.uri} is not renewed yet: {error}")
                troubled = True

    def _beat(self) -> None:
        with self._lock:
            if not self._over.is_set():
                self.check()
                self._note(beat=self._attempt.beat + 1, standing=dict(self._tell()), at=time.time())
                self._store.put(self.key, self._attempt.text())

    def _say_the_end(self) -> None:
        with self._lock:
            try:
                self._store.put(self.key, self._attempt.text())
            except JobError as error:
                events.warn(f"The end of this attempt could not be noted: {error}")


def acquire(
    store: Store, background: Store, seconds: float, holder: Holder, gone: Gone, stop: Stop, tell: Tell = dict
) -> Lease:
    """Become the only writer of the run in `store`; the lease's own thread speaks to it as `background`.

    Waits for its holder to end or to fall silent, and no longer than the lease's time-out: then raises LeaseError.
    Raises Preempted when `stop` turns true meanwhile.
    """
    attempt, seen = newest(store, seconds)
    begun = seen_at = time.monotonic()
    while True:
        now = time.monotonic()
        if may_follow(attempt, now - seen_at, gone):
            ours = after(attempt, seconds, holder, secrets.token_hex(8))
            ours = replace(ours, standing=dict(tell()), at=time.time())
            conditional = _create(store, ours)
            if _is_there(store, ours):
                _forget_old(store, ours)
                return Lease(background, ours, conditional, tell)
        elif attempt and seen_at > begun and now - begun >= attempt.lease_s:
            raise LeaseError(_held(store, attempt))
        signals.check(stop, "waiting for another job of the same run to end")
        time.sleep(min(1.0, seconds / 20))
        attempt, version = newest(store, seconds)
        if version != seen:
            seen, seen_at = version, time.monotonic()


def _forget_old(store: Store, ours: Attempt) -> None:
    for number, entry in entries(store):
        if number <= ours.number - _KEPT:
            store.delete(entry.key)


def _create(store: Store, attempt: Attempt) -> bool:
    """Create the attempt's object, unless it exists; whether the store heeds that condition.

    Where it doesn't, who wrote last has the lease, which all see who wait long enough.
    """
    try:
        store.put(attempt.key, attempt.text(), if_none_match=True)
        store.put(attempt.key, attempt.text(), if_none_match=True)  # which a store that heeds it refuses
    except PreconditionFailed:
        return True
    except ConflictError:  # one that knows of no such thing and says so
        store.put(attempt.key, attempt.text())
    events.warn(f"{store.uri} takes no conditional writes: two jobs that start at once are told apart less surely.")
    time.sleep(SETTLE_S)
    return False


def _is_there(store: Store, attempt: Attempt) -> bool:
    return parse(attempt.number, store.read(attempt.key), attempt.lease_s).nonce == attempt.nonce


def _held(store: Store, attempt: Attempt) -> str:
    host = attempt.holder.get("host", "another machine")
    return (
        f"{store.uri} is held by attempt {attempt.number}, which is alive on {host}: wait for its end, or give this "
        "job its own --run-id."
    )
