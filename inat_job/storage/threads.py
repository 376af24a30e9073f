"""Parallel work in daemon threads, which never delay the end of the process."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import TypeVar

from inat_job.signals import Stop

T = TypeVar("T")
R = TypeVar("R")

JOIN_S = 0.3
"""Seconds for threads to notice that they are to end; one that waits for a silent server does not."""

_TICK_S = 0.1


def start_daemon(work: Callable[[], R], name: str) -> "Future[R]":
    """Run `work` in a daemon thread of this name; the future has its result, or what it raised, of any kind."""
    future: Future[R] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def within(seconds: float, work: Callable[[], R], name: str) -> R:
    """The result of `work` within `seconds`. Raises what it raises, or TimeoutError, leaving it to its thread."""
    future = start_daemon(work, name)
    if not wait([future], seconds).done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return future.result()


def map_in_threads(
    items: Sequence[T], work: Callable[[T, Stop], R], *, threads: int, tick: Callable[[], None], join_s: float = JOIN_S
) -> Iterator[tuple[T, R]]:
    """Yield (item, work(item, halt)) in order of completion; the first failure is raised.

    `tick` runs in the calling thread a few times a second and may raise. At the end, whatever its cause, `halt` turns
    true and the threads get `join_s` seconds to notice; they are daemons, so that a stalled read does not outlive a
    preempted process.
    """
    todo: queue.SimpleQueue[T] = queue.SimpleQueue()
    # No SimpleQueue: before Python 3.13 its get waits for ever if a signal's handler outlasts the time-out.
    results: queue.Queue[tuple[T, R | None, BaseException | None]] = queue.Queue()
    halt = threading.Event()
    for item in items:
        todo.put(item)
    workers = [
        threading.Thread(target=_worker, args=(todo, results, work, halt), daemon=True)
        for _ in range(min(max(threads, 1), len(items)))
    ]
    try:
        for worker in workers:
            worker.start()
        for _ in items:
            yield _next_result(results, tick)
        tick()
    finally:
        halt.set()
        _join(workers, join_s)


def run_in_thread(work: Callable[[Stop], R], tick: Callable[[], None], join_s: float = JOIN_S) -> R:
    """The result of `work(halt)`, run in a thread so that a stalled server cannot keep the caller from `tick`."""
    ((_, result),) = map_in_threads([None], lambda _, halt: work(halt), threads=1, tick=tick, join_s=join_s)
    return result


def _worker(
    todo: "queue.SimpleQueue[T]",
    results: "queue.Queue[tuple[T, R | None, BaseException | None]]",
    work: Callable[[T, Stop], R],
    halt: threading.Event,
) -> None:
    while not halt.is_set():
        try:
            item = todo.get_nowait()
        except queue.Empty:
            return
        try:
            results.put((item, work(item, halt.is_set), None))
        except BaseException as error:  # of any kind: the calling thread raises it
            results.put((item, None, error))


def _next_result(
    results: "queue.Queue[tuple[T, R | None, BaseException | None]]", tick: Callable[[], None]
) -> tuple[T, R]:
    while True:
        tick()
        try:
            item, result, error = results.get(timeout=_TICK_S)
        except queue.Empty:
            continue
        if error is not None:
            raise error
        return item, result  # type: ignore[return-value]  # R may itself be None


def _join(workers: list[threading.Thread], join_s: float) -> None:
    until = time.monotonic() + join_s
    for worker in workers:
        if worker.ident is not None:
            worker.join(max(0.0, until - time.monotonic()))
