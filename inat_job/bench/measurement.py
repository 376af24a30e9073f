"""A measured rate with its limit, how it is timed, the table, and which stage is the bottleneck."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

PICTURES = "images/s"

EPOCH = "epoch"
"""The role of what happens to each image in each epoch, each beside the others: the slowest bounds."""


@dataclass(frozen=True)
class Measured:
    """Values of one thing in `unit`, and those of what it could reach at most, measured by turns with it.

    More is better unless `smaller` is; a share is 1 at the limit, less (or, where smaller is better, more) than it
    otherwise. `note` says what a reader should know of it.
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
        """Of the values."""
        return statistics.median(self.values)

    @property
    def shares(self) -> tuple[float, ...]:
        """Each value over the limit that was measured next to it; over the limit's median where that isn't known."""
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
        """Plain values, medians and spreads among them."""
        return {
            "name": self.name,
            "unit": self.unit,
            **_spread("", self.values),
            "limit": {"name": self.limit_name, **_spread("", self.limit_values)} if self.limit_values else None,
            "share": _spread("", self.shares) if self.shares else None,
            "note": self.note,
        }


def _spread(name: str, values: Sequence[float]) -> dict[str, Any]:
    return {
        f"{name}median": statistics.median(values),
        f"{name}min": min(values),
        f"{name}max": max(values),
        f"{name}values": list(values),
    }


def bounding(measured: Sequence[Measured]) -> Measured | None:
    """The slowest of what happens in each epoch, or None where none of it was measured."""
    stages = [each for each in measured if each.role == EPOCH and each.unit == PICTURES]
    return min(stages, key=lambda each: each.median, default=None)


def durations(measured: Sequence[Measured], counts: Mapping[str, int], epochs: int) -> dict[str, float]:
    """Seconds of a run of so many epochs, as far as its stages were measured; `counts` are images by split.

    Each epoch ends with a validation, and the run with one more and a test, all at the test's rate.
    """
    found = {each.name: each.median for each in measured}
    once, train, val, test = sum(counts.values()), counts["train"], counts["val"], counts["test"]
    amounts = {
        "prepare": (once, "prepare"),
        "training": (epochs * train, "training epoch"),
        "evaluation": ((epochs + 1) * val + test, "test"),
    }
    seconds = {name: images / found[rate] for name, (images, rate) in amounts.items() if rate in found}
    if "time to first step" in found:
        seconds = {"start": found["time to first step"], **seconds}
    return seconds


def portions(seconds: Mapping[str, float]) -> dict[str, float]:
    """What share of the whole each of several durations is."""
    whole = sum(seconds.values())
    return {name: value / whole if whole else 0.0 for name, value in seconds.items()}


def table(measured: Sequence[Measured]) -> str:
    """Lines for people: name, median (lowest to highest), unit, share of the limit."""
    rows: list[tuple[str, ...]] = [("what", "median", "spread", "unit", "share", "of")]
    rows += [_row(each) for each in measured]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join("  ".join(_cells(row, widths)).rstrip() for row in rows)


def _cells(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    numbers = (1, 4)
    return [
        cell.rjust(width) if at in numbers else cell.ljust(width)
        for at, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]


def _row(each: Measured) -> tuple[str, ...]:
    spread = f"{short(min(each.values))}..{short(max(each.values))}"
    share = "" if each.share is None else f"{each.share:.3f}"
    if len(each.shares) > 1:
        share += f" ({min(each.shares):.3f}..{max(each.shares):.3f})"
    limit = ""
    if each.limit_values:
        limit = f"{each.limit_name}, {short(statistics.median(each.limit_values))}"
    note = f"  [{each.note}]" if each.note else ""
    return each.name, short(each.median), spread, each.unit, share, limit + note


def short(value: float) -> str:
    """Four digits at least, and none that nobody reads."""
    if value == 0 or 0.01 <= abs(value) < 1e7:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:.3e}"


RunContext = Callable[[], object]

LEAST_S = 0.2
"""A run repeats its work until it takes this long, where that is cheap: shorter ones measure the clock's neighbours."""


def settle() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: RunContext) -> float:
    """Seconds of one go."""
    settle()
    begun = time.perf_counter()
    work()
    settle()
    return time.perf_counter() - begun


def by_turns(works: Mapping[str, RunContext], runs: int, least_s: float = LEAST_S) -> dict[str, tuple[float, ...]]:
    """Seconds a go of each work: after a go to warm up, `runs` of as many goes as fill `least_s`."""
    repeated = {name: partial(_repeat, work, _times(work, least_s)) for name, work in works.items()}
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in repeated.items():
            found[name].append(seconds(work) / work.args[1])
    return {name: tuple(values) for name, values in found.items()}


def _times(work: RunContext, least_s: float) -> int:
    """How many goes fill `least_s`, by one after the first."""
    work()
    return max(1, round(least_s / max(seconds(work), 1e-9))) if least_s else 1


def _repeat(work: RunContext, times: int) -> None:
    for _ in range(times):
        work()


def rates(amount: float, durations: tuple[float, ...]) -> tuple[float, ...]:
    """Amounts a second."""
    return tuple(amount / each for each in durations)
