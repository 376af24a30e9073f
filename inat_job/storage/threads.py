"""Work on many pieces at once by threads that never hold up the end of the process."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from inat_job.signals import Stop

T = TypeVar("T")
R = TypeVar("R")

_TICK_S = 0.1


def work_through(
    items: Sequence[T],
    work: Callable[[T, Stop], R],
    *,
    threads: int,
    tick: Callable[[], None],
    patience_s: float = 1.0,
) -> Iterator[tuple[T, R]]:
    """Yield (item, work(item, halt)) in the order that they finish; the first failure is raised.

    `tick` runs in the calling thread a few times a second and may raise. On any end `halt` turns true, and threads
    get `patience_s` to notice; they are daemons, so that a stalled read doesn't outlive a preempted process.
    """
    todo: queue.SimpleQueue[T] = queue.SimpleQueue()
    results: queue.SimpleQueue[tuple[T, R | None, BaseException | None]] = queue.SimpleQueue()
    halt = threading.Event()
    for item in items:
        todo.put(item)
    crew = [
        threading.Thread(target=_labour, args=(todo, results, work, halt), daemon=True)
        for _ in range(min(max(threads, 1), len(items)))
    ]
    try:
        for member in crew:
            member.start()
        for _ in items:
            yield _next_result(results, tick)
        tick()
    finally:
        halt.set()
        _join(crew, patience_s)


def _labour(
    todo: "queue.SimpleQueue[T]",
    results: "queue.SimpleQueue[tuple[T, R | None, BaseException | None]]",
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
        except BaseException as error:  # whatever it is, the calling thread is who deals with it
            results.put((item, None, error))


def _next_result(
    results: "queue.SimpleQueue[tuple[T, R | None, BaseException | None]]", tick: Callable[[], None]
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


def _join(crew: list[threading.Thread], patience_s: float) -> None:
    until = time.monotonic() + patience_s
    for member in crew:
        if member.ident is not None:
            member.join(max(0.0, until - time.monotonic()))
