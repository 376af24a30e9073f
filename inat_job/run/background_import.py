"""Imports the libraries that take seconds in a thread, while the job downloads its images."""

import gc
import sys
from collections.abc import Callable
from concurrent import futures
from typing import Generic, TypeVar

from inat_job import signals
from inat_job.signals import Stop
from inat_job.storage.threads import start_daemon

Module = TypeVar("Module")


class BackgroundImport(Generic[Module]):
    """Calls `imports` in a thread at once; a daemon thread, so that a job that ends early does not wait for it.

    Until it is done, the main thread may only import other packages, or those already complete: of two threads that
    import the modules of one package in different orders, one may see a module half initialised.
    """

    def __init__(self, imports: Callable[[], Module]) -> None:
        self._future = start_daemon(lambda: _without_collector(imports), "imports")

    def wait(self, stop: Stop) -> Module:
        """What `imports` returned. Raises what it raised, and Preempted."""
        while not futures.wait([self._future], 0.1).done:
            if stop():  # only then: an import shows no progress that the watchdog could count
                signals.check(stop, "importing its libraries")
        return self._future.result()


def _without_collector(imports: Callable[[], Module]) -> Module:
    collector_was_on, known = gc.isenabled(), len(sys.modules)
    gc.disable()  # modules are never garbage, and scanning them again and again takes a sixth of the time
    try:
        return imports()
    finally:
        if len(sys.modules) > known:  # otherwise this process had them, and garbage of its earlier jobs would stay
            gc.freeze()
        if collector_was_on:
            gc.enable()
