"""A measured rate and its limit: how it is timed, the table of all of them, and which stage is the bottleneck."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

IMAGES_PER_S = "images/s"

EPOCH = "epoch"
"""The role of stages that every image passes in every epoch, in parallel: the slowest is the bottleneck."""

LEAST_S = 0.2
"""Work shorter than this is repeated until it takes as long, if that is cheap: shorter runs measure noise."""

Work = Callable[[], object]


@dataclass(frozen=True)
class Measurement:
    """The values of one rate in `unit`, and those of its limit, measured alternately with it.

    The share of the limit is 1 where the limit is reached. `note` is what a reader should know.
    """

    name: str
    unit: str
    values: tuple[float, ...]
    limit_name: str = ""
    limit_values: tuple[float, ...] = ()
    role: str = ""
    note: str = ""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def shares(self) -> tuple[float, ...]:
        """Each value over the limit measured next to it, or over the limit's median if their numbers differ."""
        if not self.limit_values:
            return ()
        if len(self.limit_values) == len(self.values):
            return tuple(value / limit for value, limit in zip(self.values, self.limit_values, strict=True))
        limit = statistics.median(self.limit_values)
        return tuple(value / limit for value in self.values)

    @property
    def share(self) -> float | None:
        """The median of the shares, or None without a limit."""
        return statistics.median(self.shares) if self.shares else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, with medians, minima and maxima."""
        return {
            "name": self.name,
            "unit": self.unit,
            **_spread(self.values),
            "limit": {"name": self.limit_name, **_spread(self.limit_values)} if self.limit_values else None,
            "share": _spread(self.shares) if self.shares else None,
            "note": self.note,
        }


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "values": list(values)}


def synchronize() -> None:
    """Wait until the device has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def time_once(work: Work) -> float:
    """Seconds that the work takes, the device's included."""
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def time_alternately(works: Mapping[str, Work], runs: int, least_s: float = LEAST_S) -> dict[str, tuple[float, ...]]:
    """Seconds that each work takes once, measured `runs` times by turns.

    Each is warmed up first. In every run it is repeated until it takes about `least_s` seconds.
    """
    repeated = {name: partial(_repeat, work, _repetitions(work, least_s)) for name, work in works.items()}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in repeated.items():
            seconds[name].append(time_once(work) / work.args[1])
    return {name: tuple(values) for name, values in seconds.items()}


def _repetitions(work: Work, least_s: float) -> int:
    """How many repetitions take about `least_s`, after one to warm up."""
    work()
    return max(1, round(least_s / max(time_once(work), 1e-9))) if least_s else 1


def _repeat(work: Work, times: int) -> None:
    for _ in range(times):
        work()


def rates(amount: float, durations: tuple[float, ...]) -> tuple[float, ...]:
    """Amounts per second."""
    return tuple(amount / each for each in durations)


def bottleneck(measurements: Sequence[Measurement]) -> Measurement | None:
    """The slowest stage of an epoch, or None if none was measured."""
    stages = [each for each in measurements if each.role == EPOCH and each.unit == IMAGES_PER_S]
    return min(stages, key=lambda each: each.median, default=None)


def run_durations(measurements: Sequence[Measurement], counts: Mapping[str, int], epochs: int) -> dict[str, float]:
    """Seconds of the parts of a run of `epochs` epochs, as far as they were measured; `counts` are images by split.

    Every epoch ends with a validation, and the run with one more and a test, all at the test's rate.
    """
    medians = {each.name: each.median for each in measurements}
    total, train, val, test = sum(counts.values()), counts["train"], counts["val"], counts["test"]
    amounts = {
        "prepare": (total, "prepare"),
        "training": (epochs * train, "training epoch"),
        "evaluation": ((epochs + 1) * val + test, "test"),
    }
    seconds = {name: images / medians[rate] for name, (images, rate) in amounts.items() if rate in medians}
    if "time to first step" in medians:
        seconds = {"start": medians["time to first step"], **seconds}
    return seconds


def shares_of_total(seconds: Mapping[str, float]) -> dict[str, float]:
    """The share of the total, 0..1, of each of several durations."""
    total = sum(seconds.values())
    return {name: value / total if total else 0.0 for name, value in seconds.items()}


def table(measurements: Sequence[Measurement]) -> str:
    """A table for people: name, median, lowest and highest value, unit, and share of the limit."""
    rows: list[tuple[str, ...]] = [("what", "median", "spread", "unit", "share", "of")]
    rows += [_row(each) for each in measurements]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(_cells(row, widths)).rstrip() for row in rows)


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    numbers = (1, 4)
    return [
        cell.rjust(width) if column in numbers else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _row(each: Measurement) -> tuple[str, ...]:
    spread = f"{format_number(min(each.values))}..{format_number(max(each.values))}"
    share = "" if each.share is None else f"{each.share:.3f}"
    if len(each.shares) > 1:
        share += f" ({min(each.shares):.3f}..{max(each.shares):.3f})"
    limit = ""
    if each.limit_values:
        limit = f"{each.limit_name}, {format_number(statistics.median(each.limit_values))}"
    note = f"  [{each.note}]" if each.note else ""
    return each.name, format_number(each.median), spread, each.unit, share, limit + note


def format_number(value: float) -> str:
    """A number with four significant digits, or all digits before the point."""
    if value == 0 or 0.01 <= abs(value) < 1e7:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:.3e}"
