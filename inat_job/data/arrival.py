"""A download by a thread of its own, so that what has landed is worked on meanwhile."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from inat_job import signals
from inat_job.signals import Stop
from inat_job.storage.landing import Landing

_PATIENCE_S = 2.0
_TICK_S = 0.1


@contextmanager
def arriving(landing: Landing, fetch: Callable[[Stop], object], stop: Stop) -> Iterator[None]:
    """Let `fetch` run beside the block, which reads what of it is `landing`; the end of the block waits for it.

    Raises what `fetch` raises, and Preempted. If the block itself fails, `fetch` is stopped; it may be kept up by a
    silent server, so that it is waited for only a moment.
    """
    halted, errors = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            fetch(lambda: stop() or halted.is_set())
        except BaseException as error:  # whatever it is, the calling thread is who deals with it
            errors.append(error)
        finally:
            landing.lose()

    thread = threading.Thread(target=work, name="pull", daemon=True)
    thread.start()
    try:
        yield
        while thread.is_alive():
            thread.join(_TICK_S)
            signals.check(stop, "fetching the data set")
        if errors:
            raise errors[0]
    finally:
        halted.set()
        thread.join(_PATIENCE_S)
