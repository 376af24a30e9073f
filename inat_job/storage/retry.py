"""Patience with trouble that passes: how often a request is tried again, and how long to wait in between."""

import random
import time
from collections.abc import Callable
from typing import TypeVar

from inat_job.errors import TransientError
from inat_job.signals import Stop, check, never

T = TypeVar("T")

FIRST_WAIT_S = 0.2
LONGEST_WAIT_S = 20.0
_NAP_S = 0.1


class PassingError(TransientError):
    """Trouble that is worth another attempt; `wait_s` is what the server asked for."""

    def __init__(self, message: str, wait_s: float | None = None) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class Patience:
    """Counts attempts in a row that got nowhere, and waits between them."""

    def __init__(self, retries: int, stop: Stop = never) -> None:
        self._retries = retries
        self._stop = stop
        self._failed = 0

    def spend(self, error: PassingError, progressed: bool = False) -> None:
        """Wait before the next attempt. Raises `error` when patience is out, Preempted when stopped."""
        self._failed = 1 if progressed else self._failed + 1
        if self._failed > self._retries:
            raise error
        self._sleep(wait_s(self._failed) if error.wait_s is None else min(error.wait_s, 3 * LONGEST_WAIT_S))

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            check(self._stop, "waiting for the storage")
            time.sleep(min(left, _NAP_S))


def wait_s(failed: int) -> float:
    """Seconds before attempt `failed` + 1: doubling, capped, and spread so that many jobs don't return at once."""
    full = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failed - 1, 60))
    return full * random.uniform(0.5, 1.0)  # noqa: S311 (nothing secret, and nothing that decides a result)


def persist(action: Callable[[], T], retries: int, stop: Stop = never) -> T:
    """What `action` returns, trying again as long as it raises PassingError."""
    patience = Patience(retries, stop)
    while True:
        try:
            return action()
        except PassingError as error:
            patience.spend(error)
