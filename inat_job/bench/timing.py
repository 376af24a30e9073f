"""Seconds that work takes, the device's included; two kinds of work are timed by turns, so that both meet the noise."""

import time
from collections.abc import Callable, Mapping
from functools import partial

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


def by_turns(works: Mapping[str, Work], runs: int, least_s: float = LEAST_S) -> dict[str, tuple[float, ...]]:
    """Seconds a go of each work: after a go to warm up, `runs` of as many goes as fill `least_s`."""
    repeated = {name: partial(_repeat, work, _times(work, least_s)) for name, work in works.items()}
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(runs):
        for name, work in repeated.items():
            found[name].append(seconds(work) / work.args[1])
    return {name: tuple(values) for name, values in found.items()}


def _times(work: Work, least_s: float) -> int:
    """How many goes fill `least_s`, by one after the first."""
    work()
    return max(1, round(least_s / max(seconds(work), 1e-9))) if least_s else 1


def _repeat(work: Work, times: int) -> None:
    for _ in range(times):
        work()


def rates(amount: float, durations: tuple[float, ...]) -> tuple[float, ...]:
    """Amounts a second."""
    return tuple(amount / each for each in durations)
