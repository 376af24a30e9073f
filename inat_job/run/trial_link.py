"""The connection between a run that is a trial of a sweep and the worker that started it.

The worker is another process. If it is gone, the trial stores its checkpoint and ends, and whichever worker takes the
trial up next continues from there.
"""

from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import NamedTuple

from inat_job.errors import Preempted
from inat_job.signals import StopFlag

PRUNED = "the sweep, which prunes this trial"
_WORKER_LOST = "the loss of the sweep's worker"


class Epochs(NamedTuple):
    """The validation accuracy after each epoch so far; `last` if training has ended."""

    accuracies: list[float]
    last: bool


class Ended(NamedTuple):
    """How a trial's process ended: its exit code, and the sentence that says why.

    `accuracies` are those of all epochs of a finished run; `held` says that another job holds the run; `on_images` that
    it failed while it pulled or prepared the images, which all trials share.
    """

    code: int
    sentence: str
    accuracies: tuple[float, ...] = ()
    held: bool = False
    on_images: bool = False

    @property
    def is_failure(self) -> bool:
        """Whether it neither finished, nor stopped, nor left its run to another job."""
        return self.code not in (0, Preempted.exit_code) and not self.held

    @property
    def value(self) -> float | None:
        """What a finished trial is worth: the validation accuracy of its best epoch, as the pruner compares it too.

        Its own report validates the best weights again, in float32, and may count an image differently.
        """
        return max(self.accuracies, default=None)


class TrialLink:
    """The trial's end of the connection; the trial goes on without an answer that takes over `patience_s` seconds."""

    def __init__(self, connection: Connection, stop: StopFlag, patience_s: float) -> None:
        self._connection, self._stop, self._patience_s = connection, stop, patience_s

    def report(self, accuracies: Sequence[float], last: bool) -> None:
        """Report the epochs so far, and raise the stop flag if the worker prunes the trial, or is gone.

        A trial whose training has ended is not pruned.
        """
        try:
            self._connection.send(Epochs(list(accuracies), last))
            prune = self._connection.poll(self._patience_s) and self._connection.recv()
        except (EOFError, OSError):
            self._stop.set(_WORKER_LOST)
            return
        if prune:
            self._stop.set(PRUNED)
