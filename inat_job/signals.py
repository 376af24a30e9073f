"""The stop flag: SIGTERM and SIGINT only set it, every phase reads it, and a second one exits at once if it counts."""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Collection
from types import FrameType

from inat_job import watchdog
from inat_job.errors import Preempted

Stop = Callable[[], bool]

_EXIT_S = 3.0
"""Seconds of the grace period that are kept for the exit, once the wait for a checkpoint is over."""

_TICK_S = 0.1

_LAST_S = 1.0
"""Seconds before the end of the grace period at which a hung process ends itself, so that it can still say why."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AT_ONCE = (
    b"\nStopped at once by a second signal: what was not stored yet is lost; run the same command again to continue.\n"
)


class StopFlag:
    """A callable that turns true with the first signal, or when a thread sets it for another reason.

    `why` is the reason, `raised_at` the time.monotonic() of it.
    """

    def __init__(self) -> None:
        self.why = ""
        self.raised_at: float | None = None
        self._handled = False
        self._ignored_repeats: Collection[int] = ()
        self._wakeup: int | None = None

    def __call__(self) -> bool:
        return self.raised_at is not None

    def install(self) -> None:
        """Make this flag the process's signal handler, also for `wait_for_signal`."""
        if self._wakeup is None:
            self._wakeup, written = os.pipe()
            os.set_blocking(written, False)
            signal.set_wakeup_fd(written, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def wait_for_signal(self, seconds: float) -> None:
        """In a thread, wait up to `seconds` for a signal; it counts even while the main thread hangs in C code."""
        if self._wakeup is None:
            time.sleep(seconds)
        elif select.select([self._wakeup], [], [], seconds)[0]:
            numbers = os.read(self._wakeup, 64)
            time.sleep(_TICK_S)  # for the handler, which is first if it can run
            for number in numbers:
                if number in SIGNALS:
                    self.set(signal.Signals(number).name)

    def ignore_repeats(self, numbers: Collection[int] = SIGNALS) -> None:
        """Ignore signals of these numbers that come after the first of any number."""
        self._ignored_repeats = numbers

    def set(self, why: str) -> None:
        """Ask the job to store its state and end; the first reason counts."""
        if self.raised_at is None:
            self.why, self.raised_at = why, time.monotonic()

    def seconds_left(self, grace_s: float) -> float:
        """Seconds left of the grace period: all of it until the flag is set."""
        return grace_s if self.raised_at is None else self.raised_at + grace_s - time.monotonic()

    def seconds_to_store(self, grace_s: float) -> float:
        """The longest wait for a checkpoint in seconds; the rest of the grace period is for the exit."""
        return max(0.0, self.seconds_left(grace_s) - min(_EXIT_S, grace_s / 4))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._handled and number not in self._ignored_repeats:
            with contextlib.suppress(OSError):  # its reader is gone
                os.write(2, _AT_ONCE)
            os._exit(Preempted.exit_code)  # asked twice: the upload is not worth the wait
        self._handled = True
        self.set(signal.Signals(number).name)


def never() -> bool:
    """The stop callable of work that nothing interrupts."""
    return False


def check(stop: Stop, doing: str) -> None:
    """Raise Preempted if `stop` is set. `doing` says what is under way, and counts as progress for the watchdog."""
    if stop is not never:  # which background threads pass, whose progress is not the job's
        watchdog.beat()
    if stop():
        raise Preempted(f"Stopped while {doing}; run the same command again to continue.")


def pause(seconds: float, stop: Stop, doing: str) -> None:
    """Wait so long. Raises Preempted, as `check` does."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        check(stop, doing)
        time.sleep(min(left, _TICK_S))


def reserve_s(grace_s: float) -> float:
    """Seconds before the end of the grace period at which a hung process ends itself."""
    return min(_LAST_S, grace_s / 10)


def end_within_grace(
    stop: StopFlag, grace_s: float, on_stop: Callable[[], None], on_end: Callable[[], None], margin_s: float
) -> None:
    """Start a thread that ends this process with 143, `margin_s` before the grace period is over, once `stop` is set.

    The thread calls `on_stop` as soon as the flag is set, since a signal handler may not write, and `on_end` just
    before it ends the process. It is needed where a request without an answer, or a compiler, keeps the main thread
    from reading the flag.
    """

    def watch() -> None:
        while not stop():
            stop.wait_for_signal(_TICK_S)
        on_stop()
        while stop.seconds_left(grace_s) > margin_s:
            time.sleep(_TICK_S)
        on_end()
        os._exit(Preempted.exit_code)

    threading.Thread(target=watch, name="grace", daemon=True).start()
