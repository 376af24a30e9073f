"""The job's pulse: work that advances beats, and a watcher is notified, which can so detect a job that hangs.

No thread beats by itself, so nothing beats while work makes no progress.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

AT_MOST_EVERY_S = 1.0
"""Seconds between two calls of the watcher."""

_last, _notified = time.monotonic(), 0.0
_waits = 0
_watcher: Callable[[], None] | None = None


def beat() -> None:
    """Note progress: something was read, computed or stored, or waits for what has a time-out of its own."""
    global _last, _notified
    if _waits:
        return
    _last = time.monotonic()
    if _watcher is not None and _last - _notified >= AT_MOST_EVERY_S:
        _notified = _last
        _watcher()


@contextmanager
def waiting() -> Iterator[None]:
    """Nothing in the block is progress of this job: it waits for another one."""
    global _waits
    _waits += 1
    try:
        yield
    finally:
        _waits -= 1


def still_s() -> float:
    """Seconds since the last beat."""
    return time.monotonic() - _last


def watched_by(watcher: Callable[[], None] | None) -> None:
    """Call `watcher`, which must not raise, at beats from now on, at most once a second; None ends it."""
    global _watcher, _notified
    _watcher, _notified = watcher, 0.0
