"""How long the phases of a job take."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

_PHASES = ("pull_s", "prepare_s", "startup_s", "train_s", "test_s", "pictures_s", "export_s")


class Clock:
    """Times the phases of a job, in seconds; `started` is time.perf_counter() at the start of the process."""

    def __init__(self, started: float) -> None:
        self._started = started
        self._seconds = dict.fromkeys(_PHASES, 0.0)
        self._earlier_train_s = 0.0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to a phase."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - started

    def mark_first_step(self, at: float | None) -> None:
        """Set the start-up time, which ends as the first training step begins: at `at`, or now if there was none."""
        self._seconds["startup_s"] = (at or time.perf_counter()) - self._started

    def started_at(self) -> str:
        """The date at which this process started, in the form of `utc_now`."""
        return _text(datetime.now(UTC) - timedelta(seconds=time.perf_counter() - self._started))

    def add_earlier(self, train_s: float) -> None:
        """Set the training time of earlier attempts, as far as their checkpoints hold it."""
        self._earlier_train_s = train_s

    def wall_s(self) -> float:
        """Seconds that the devices were held: this attempt so far, and the stored training of earlier ones."""
        return self._earlier_train_s + time.perf_counter() - self._started

    def timing(self, train_s: float) -> dict[str, float]:
        """The report's section `timing`. Training counts all attempts, the other phases this one."""
        seconds = {**self._seconds, "train_s": train_s, "total_s": time.perf_counter() - self._started}
        return {name: round(value, 3) for name, value in seconds.items()}


def utc_now() -> str:
    """The date in UTC to the second, as ISO 8601 has it: 2026-01-31T12:00:00Z."""
    return _text(datetime.now(UTC))


def _text(date: datetime) -> str:
    return date.strftime("%Y-%m-%dT%H:%M:%SZ")
