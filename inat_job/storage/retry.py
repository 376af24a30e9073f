"""The retry policy of every store: exponential backoff between failed attempts.

How many may fail in a row is `StorageOptions.retries`, in storage/base.py.
"""

import random
from collections.abc import Callable
from typing import TypeVar

from inat_job.errors import TransientError
from inat_job.signals import Stop, never, pause

T = TypeVar("T")

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 20.0

_JITTER = random.Random()  # noqa: S311 (nothing secret); not the shared generator, which others seed and check


class RetryableError(TransientError):
    """A failure that another attempt may cure; `wait_s` is the pause that the server asked for."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Retries:
    """Counts consecutive attempts without progress, and waits between them."""

    def __init__(self, retries: int, stop: Stop = never) -> None:
        self._retries = retries
        self._stop = stop
        self._failed = 0

    def wait(self, error: RetryableError, progressed: bool = False) -> None:
        """Wait before the next attempt. Raises `error` once the retries are used up, Preempted when stopped."""
        self._failed = 1 if progressed else self._failed + 1
        if self._failed > self._retries:
            raise error
        wait_s = backoff_s(self._failed) if error.wait_s is None else min(error.wait_s, 3 * LONGEST_WAIT_S)
        pause(wait_s, self._stop, "waiting for the storage")


def backoff_s(failed: int) -> float:
    """Seconds to wait after `failed` failures: doubling, capped, and jittered to spread the retries of many jobs."""
    full = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failed - 1, 60))
    return full * _JITTER.uniform(0.5, 1.0)


def with_retries(action: Callable[[], T], retries: int, stop: Stop = never) -> T:
    """The result of `action`, repeated as long as it raises RetryableError and retries are left."""
    attempts = Retries(retries, stop)
    while True:
        try:
            return action()
        except RetryableError as error:
            attempts.wait(error)
