"""Parallel work in daemon threads."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from inat_job.signals import Stop
from inat_job.storage.threads import map_in_threads, run_in_thread


def no_tick() -> None:
    pass


@pytest.mark.parametrize("threads", [1, 3, 100])
def test_every_item_has_its_result(threads: int) -> None:
    results = map_in_threads(range(20), lambda item, halt: item**2, threads=threads, tick=no_tick)
    assert sorted(results) == [(item, item**2) for item in range(20)]
    assert list(map_in_threads([], lambda item, halt: item, threads=threads, tick=no_tick)) == []


def test_first_failure_is_raised_and_halts_the_others() -> None:
    halted = threading.Event()

    def work(item: int, halt: Stop) -> None:
        if item == 0:
            raise OSError("the disk is gone")
        while not halt():
            time.sleep(0.01)
        halted.set()

    with pytest.raises(OSError, match="the disk is gone"):
        list(map_in_threads([0, 1], work, threads=2, tick=no_tick))
    assert halted.is_set()


def test_tick_may_end_stalled_work() -> None:
    begun = time.monotonic()

    def tick() -> None:
        if time.monotonic() > begun + 0.3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        run_in_thread(lambda halt: time.sleep(30), tick, join_s=0.0)
    assert time.monotonic() - begun < 5


def test_run_in_thread_returns_the_result() -> None:
    assert run_in_thread(lambda halt: (halt(), threading.current_thread().daemon), no_tick) == (False, True)


@pytest.fixture
def slow_handler() -> Iterator[threading.Event]:
    """Set by a handler of SIGUSR1 that takes longer than the time between two ticks."""
    handled = threading.Event()

    def handle(number: int, frame: object) -> None:
        handled.set()
        time.sleep(0.3)

    before = signal.signal(signal.SIGUSR1, handle)
    yield handled
    signal.signal(signal.SIGUSR1, before)


def test_tick_goes_on_after_a_slow_signal_handler(slow_handler: threading.Event) -> None:
    def tick() -> None:
        if slow_handler.is_set():
            raise InterruptedError

    released, ended = threading.Event(), threading.Event()

    def work(halt: Stop) -> None:
        released.wait(3.0)
        ended.set()

    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
    with pytest.raises(InterruptedError):
        run_in_thread(work, tick, join_s=0.0)
    assert not ended.is_set()
    released.set()
