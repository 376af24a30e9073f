"""Imports the libraries that take seconds in a thread, while the job downloads its images."""

import gc
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from inat_job import signals
from inat_job.signals import Stop

Module = TypeVar("Module")


class BackgroundImport(Generic[Module]):
    """Calls `imports` in a thread at once; a daemon thread, so that a job that ends early does not wait for it.

    Until it is done, the main thread may only import other packages, or those already complete: of two threads that
    import the modules of one package in different orders, one may see a module half initialised.
    """

    def __init__(self, imports: Callable[[], Module]) -> None:
        self._imports = imports
        self._modules: list[Module] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="imports", daemon=True)
        self._thread.start()

    def wait(self, stop: Stop) -> Module:
        """What `imports` returned. Raises what it raised, and Preempted."""
        while self._thread.is_alive():
            if stop():  # only then: an import shows no progress that the watchdog could count
                signals.check(stop, "importing its libraries")
            self._thread.join(0.1)
        if self._error:
            raise self._error
        return self._modules[0]

    def _run(self) -> None:
        collector_was_on = gc.isenabled()
        gc.disable()  # modules are never garbage, and scanning them again and again takes a sixth of the time
        try:
            self._modules.append(self._imports())
        except BaseException as error:
            self._error = error
        finally:
            gc.freeze()
            if collector_was_on:
                gc.enable()
