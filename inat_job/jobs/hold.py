"""Holds a run while a job works on it: one writer, whose attempt is noted with how it ended."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from inat_job import events
from inat_job.errors import JobError, Preempted
from inat_job.platforms import process
from inat_job.signals import Stop
from inat_job.storage.lease import Lease, acquire
from inat_job.storage.run_folder import RunFolder

_TOLD = {
    "phase": "phase",
    "step": "at_step",
    "epoch": "epoch",
    "epochs": "epochs",
    "steps_per_epoch": "steps_per_epoch",
    "images_per_s": "images_per_s",
}
"""What the lease's beats say of the work, and the facts that it is."""


@dataclass(frozen=True)
class Held:
    """A run folder, and the lease on it."""

    folder: RunFolder
    lease: Lease


@contextmanager
def hold(folder: RunFolder, seconds: float, stop: Stop) -> Iterator[Held]:
    """Be the run's only writer within the block. Raises LeaseError when another job is, for as long as this waits."""
    lease = acquire(folder.store, folder.background, seconds, process.identity(), process.gone, stop, _standing)
    try:
        yield Held(folder, lease)
    except Preempted:
        lease.end("preempted")
        raise
    except BaseException as error:
        lease.end(f"failed with code {error.exit_code if isinstance(error, JobError) else 1}")
        raise
    lease.end()


def _standing() -> Mapping[str, object]:
    """Where the work stands, for who asks with `status`."""
    known = events.noted()
    return {name: known[fact] for name, fact in _TOLD.items() if fact in known}
