"""The job's pulse: whatever gets on with its work beats, and who watches for a job that hangs is told.

No thread beats for its own sake, so that nothing beats for work that stands still.
"""

import time
from collections.abc import Callable

AT_MOST_EVERY_S = 1.0
"""Seconds between two times that the watcher is told."""

_last, _told = time.monotonic(), 0.0
_tell: Callable[[], None] | None = None


def beat() -> None:
    """The work got on: it was read, computed or stored, or waits for what has a time-out of its own."""
    global _last, _told
    _last = time.monotonic()
    if _tell is not None and _last - _told >= AT_MOST_EVERY_S:
        _told = _last
        _tell()


def still_s() -> float:
    """Seconds since the last beat."""
    return time.monotonic() - _last


def watched_by(tell: Callable[[], None] | None) -> None:
    """Call `tell`, which must not raise, at the beats from now on, though not at every one; None ends it."""
    global _tell, _told
    _tell, _told = tell, 0.0
