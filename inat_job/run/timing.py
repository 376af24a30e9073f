"""The seconds that the phases of a job took."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

_PHASES = ("pull_s", "prepare_s", "startup_s", "train_s", "test_s")


class Clock:
    """Times phases by name; `started` is the time.perf_counter() of the process's start."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._seconds = dict.fromkeys(_PHASES, 0.0)
        self._earlier_s = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to a phase."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - begun

    def first_step(self, at: float | None) -> None:
        """Note when the first training step began: start-up is the time until then."""
        self._seconds["startup_s"] = (at or time.perf_counter()) - self._started

    def earlier(self, train_s: float) -> None:
        """Note the training of earlier attempts, as far as it is stored."""
        self._earlier_s = train_s

    def wall_s(self) -> float:
        """Seconds that the devices were held: all of this attempt so far, and of earlier ones the stored training."""
        return self._earlier_s + time.perf_counter() - self._started

    def timing(self, train_s: float) -> dict[str, float]:
        """The report's section; training counts all attempts, the rest this one."""
        seconds = {**self._seconds, "train_s": train_s, "total_s": time.perf_counter() - self._started}
        return {name: round(value, 3) for name, value in seconds.items()}
