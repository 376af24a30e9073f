"""Seconds that work takes, the device's included; two kinds of work are timed by turns, so that both meet the noise."""

import time
from collections.abc import Callable

import torch

Work = Callable[[], object]

LEAST_S = 0.2
"""A run repeats its work until it takes this long, where that is cheap: shorter ones measure the clock's neighbours."""


def settle() -> None:
    """Wait until the device has done what it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Work) -> float:
    """Seconds of one go."""
    settle()
    begun = time.perf_counter()
    work()
    settle()
    return time.perf_counter() - begun


def by_turns(works: dict[str, Work], runs: int, least_s: float = LEAST_S) -> dict[str, tuple[float, ...]]:
    """Seconds a go of each work: one go to warm up and to see how many fill `least_s`, then `runs` of so many each."""
    times = {}
    for name, work in works.items():
        work()
        times[name] = max(1, round(least_s / max(seconds(work), 1e-9))) if least_s else 1
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in works.items():
            found[name].append(seconds(lambda work=work, name=name: _repeat(work, times[name])) / times[name])  # type: ignore[misc]
    return {name: tuple(values) for name, values in found.items()}


def _repeat(work: Work, times: int) -> None:
    for _ in range(times):
        work()


def rates(amount: float, durations: tuple[float, ...]) -> tuple[float, ...]:
    """Amounts a second."""
    return tuple(amount / each for each in durations)
