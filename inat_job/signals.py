"""The stop flag: SIGTERM and SIGINT only set it, every phase reads it, and a second signal exits at once."""

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from inat_job import watchdog
from inat_job.errors import Preempted

Stop = Callable[[], bool]

_OWN_END_S = 3.0
"""Seconds of the grace that are left to a job when it stops waiting for a checkpoint."""

_TICK_S = 0.1

_LAST_S = 1.0
"""Seconds of the grace before its end in which a job that hangs is ended, so that it is not killed without a word."""

SIGNALS = (signal.SIGTERM, signal.SIGINT)
_AT_ONCE = b"Error: Stopped by a second signal: what was not stored yet is lost; run the same command again to go on.\n"


class StopFlag:
    """A callable that turns true with the first signal, or when a thread raises it for another reason.

    `why` names the reason in the end; `raised_at` is its time.monotonic().
    """

    def __init__(self) -> None:
        self.why = ""
        self.raised_at: float | None = None
        self._patient = self._handled = False
        self._woken: int | None = None

    def __call__(self) -> bool:
        return self.raised_at is not None

    def install(self) -> None:
        """Make this flag the process's handler, and what `listen` hears of."""
        if self._woken is None:
            self._woken, told = os.pipe()
            os.set_blocking(told, False)
            signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def listen(self, seconds: float) -> None:
        """Wait so long, in a thread, for a signal: Python's handlers wait until the main thread is out of C code."""
        if self._woken is None:
            time.sleep(seconds)
        elif select.select([self._woken], [], [], seconds)[0]:
            numbers = os.read(self._woken, 64)
            time.sleep(_TICK_S)  # for the handler, which comes first where it can
            for number in numbers:
                if number in SIGNALS:
                    self.set(signal.Signals(number).name)

    def be_patient(self) -> None:
        """Take no second signal for more than the first: whoever passes them on decides what is ended at once."""
        self._patient = True

    def set(self, why: str) -> None:
        """Ask the job to store what it has and to end, because of `why`; the first reason counts."""
        if self.raised_at is None:
            self.why, self.raised_at = why, time.monotonic()

    def seconds_left(self, grace_s: float) -> float:
        """Seconds of the grace that are left; all of it as long as the flag is down."""
        return grace_s if self.raised_at is None else self.raised_at + grace_s - time.monotonic()

    def seconds_to_store(self, grace_s: float) -> float:
        """Those that may be waited for a checkpoint; the rest is for the job's own end."""
        return max(0.0, self.seconds_left(grace_s) - min(_OWN_END_S, grace_s / 4))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._handled and not self._patient:
            os.write(2, _AT_ONCE)
            os._exit(Preempted.exit_code)  # asked twice: whoever asks no longer wants to wait for the upload
        self._handled = True
        if self.raised_at is None:
            self.raised_at = time.monotonic()
        self.why = signal.Signals(number).name


def never() -> bool:
    """The stop callable of work that nothing interrupts."""
    return False


def check(stop: Stop, doing: str) -> None:
    """Raise Preempted if `stop` is set; `doing` says what was under way, which got on so far."""
    if stop is not never:  # as of threads that work in the background, whatever becomes of the job
        watchdog.beat()
    if stop():
        raise Preempted(f"Stopped by a signal while {doing}; run the same command again to go on.")


def reserve_s(grace_s: float) -> float:
    """Seconds before the end of the grace in which whoever hangs is ended."""
    return min(_LAST_S, grace_s / 10)


def end_with_the_grace(
    stop: StopFlag, grace_s: float, at_once: Callable[[], None], last_words: Callable[[], None], reserves: float = 1.0
) -> None:
    """Watch, in a thread, that the process ends within the grace once `stop` is set: with `last_words`, and 143.

    `at_once` is called when it is set, since a signal's handler itself may not write. `reserves` is how many times
    `reserve_s` are left then: more for a process that another one ends in time.

    Whatever the job is busy with, a request that nobody answers or a compiler, may keep it from reading the flag.
    """

    def watch() -> None:
        while not stop():
            stop.listen(_TICK_S)
        at_once()
        while stop.seconds_left(grace_s) > reserves * reserve_s(grace_s):
            time.sleep(_TICK_S)
        last_words()
        os._exit(Preempted.exit_code)

    threading.Thread(target=watch, name="grace", daemon=True).start()
