"""The retry policy of every store: exponential backoff between failed attempts, and a warning at the first failure.

How many may fail in a row is `StorageOptions.retries`, in storage/base.py.
"""

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from inat_job import events
from inat_job.address import host_of
from inat_job.errors import TransientError
from inat_job.signals import Stop, never, pause

T = TypeVar("T")

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 20.0

TRIES_OF_A_NAME = 3
"""Tries of a host whose name has never been resolved: a misspelled one stays unknown."""

_SAME_TROUBLE_S = 60.0
"""Failures of one host with shorter pauses between them are warned of once."""

_JITTER = random.Random()  # noqa: S311 (nothing secret); not the shared generator, which others seed and check


class RetryableError(TransientError):
    """A failure that another attempt may cure.

    `what` is the failure, `fix` what to do if it outlasts the retries, `wait_s` the pause that the server asked for.
    `is_unresolved` if the name of a host has no address.
    """

    def __init__(
        self, what: str, fix: str = "try again later", *, wait_s: float | None = None, is_unresolved: bool = False
    ) -> None:
        super().__init__(f"{what} despite retries: {fix}.")
        self.what, self.wait_s, self.is_unresolved = what, wait_s, is_unresolved


class _Hosts:
    """What this process knows of hosts: whose name was resolved once, and when each of them last failed."""

    def __init__(self) -> None:
        self.resolved: set[str] = set()
        self._failed_at: dict[str, float] = {}
        self._lock = threading.Lock()

    def fails(self, host: str) -> bool:
        """Note a failure; returns whether it is the first of this host for `_SAME_TROUBLE_S`."""
        now = time.monotonic()
        with self._lock:
            before = self._failed_at.get(host, -_SAME_TROUBLE_S)
            self._failed_at[host] = now
        return now - before >= _SAME_TROUBLE_S


_HOSTS = _Hosts()


class Retries:
    """Counts consecutive attempts without progress at the `address` of an object, and waits between them."""

    def __init__(self, retries: int, address: str, stop: Stop = never) -> None:
        self._retries, self._host, self._stop = retries, host_of(address), stop
        self._failed = 0

    def wait(self, error: RetryableError, progressed: bool = False) -> None:
        """Wait before the next attempt, with a warning for the first failure of a host.

        Raises `error` once the retries are used up, Preempted when stopped.
        """
        self._failed = 1 if progressed else self._failed + 1
        if not error.is_unresolved:
            _HOSTS.resolved.add(self._host)
        most = self._retries if self._host in _HOSTS.resolved else min(self._retries, TRIES_OF_A_NAME - 1)
        if self._failed > most:
            raise error
        if _HOSTS.fails(self._host) and self._failed == 1:
            seconds = 0.75 * sum(map(_longest_s, range(1, most + 1)))  # on average, see backoff_s
            events.warn(f"{error.what}: trying again, up to {most} times in about {seconds:.0f} s.")
        wait_s = backoff_s(self._failed) if error.wait_s is None else min(error.wait_s, 3 * LONGEST_WAIT_S)
        pause(wait_s, self._stop, "waiting for the storage")


def _longest_s(failed: int) -> float:
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failed - 1, 60))


def backoff_s(failed: int) -> float:
    """Seconds to wait after `failed` failures: doubling, capped, and jittered to spread the retries of many jobs."""
    return _longest_s(failed) * _JITTER.uniform(0.5, 1.0)


def with_retries(action: Callable[[], T], retries: int, address: str, stop: Stop = never) -> T:
    """The result of `action`, repeated as long as it raises RetryableError and retries are left."""
    attempts = Retries(retries, address, stop)
    while True:
        try:
            result = action()
        except RetryableError as error:
            attempts.wait(error)
        else:
            _HOSTS.resolved.add(host_of(address))
            return result
