"""Parallel work in daemon threads."""

import subprocess
import sys
import threading
import time
from pathlib import Path

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


def test_slow_signal_handler_does_not_end_the_polls() -> None:
    """A handler, or the wait for the interpreter lock before it, may take longer than a poll."""
    script = """
import signal, threading, time
from inat_job.storage.threads import run_in_thread
raised = []
def handle(*_):
    time.sleep(0.3)
    raised.append(1)
def tick():
    if raised: raise SystemExit(7)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.55)
run_in_thread(lambda halt: time.sleep(60), tick, join_s=0.0)
"""
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, timeout=30).returncode == 7
