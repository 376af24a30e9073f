"""The stop flag: SIGTERM and SIGINT only set it, every phase reads it, and a second signal exits at once."""

import os
import signal
from collections.abc import Callable
from types import FrameType

from inat_job.errors import Preempted

Stop = Callable[[], bool]

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopFlag:
    """A callable that turns true with the first signal."""

    def __init__(self) -> None:
        self._signal: int | None = None

    def __call__(self) -> bool:
        return self._signal is not None

    def install(self) -> None:
        """Make this flag the process's handler; call again wherever a library may have put its own in place."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            os._exit(Preempted.exit_code)  # asked twice: whoever asks no longer wants to wait for the upload
        self._signal = number


def never() -> bool:
    """The stop callable of work that nothing interrupts."""
    return False


def check(stop: Stop, doing: str) -> None:
    """Raise Preempted if `stop` is set; `doing` says what was under way."""
    if stop():
        raise Preempted(f"Stopped by a signal while {doing}; run the same command again to go on.")
