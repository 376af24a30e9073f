"""Looks at the machine before a job: disk, shared memory, memory and the device, against what the settings ask."""

import os
import shutil
from pathlib import Path

from inat_job.data.look import Looked
from inat_job.data.prepare import drafted
from inat_job.errors import ConflictError, NoPermissionError
from inat_job.jobs import room, team
from inat_job.jobs.checking import Caution
from inat_job.platforms import driver, gpus, memory
from inat_job.platforms.place import Place
from inat_job.settings import Settings, TrainSettings
from inat_job.storage.disk import disk_errors

_NCCL_WANTS = 2**30
"""Bytes of shared memory for several devices on a machine:
https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html#shared-memory"""


def check_disk(settings: Settings, looked: Looked | None) -> str | Caution:
    """The disk of `--cache-dir`, against what is known of the data set. Raises NoPermissionError and ConflictError."""
    folder = Path(settings.data.cache_dir).absolute()
    with disk_errors(folder):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free + drafted(folder)
    if not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise NoPermissionError(f"--cache-dir {folder} cannot be written by user {os.geteuid()}: name another folder.")
    if looked is None:
        return Caution(f"{_megabytes(free)} MB free in {folder}, and what the data set needs is not known", "see data")
    known = (looked.fetched or 0) + (looked.decoded or 0)
    if free < known:
        raise ConflictError(
            f"--cache-dir {folder} has {_megabytes(free)} MB free, and the data set needs {_megabytes(known)} MB: free "
            "some, or name another folder."
        )
    text = f"{_megabytes(free)} MB free in {folder}, {_megabytes(known)} MB needed"
    if looked.fetched is None or looked.decoded is None:
        return Caution(f"{text} and more, which is not known yet", "leave room for the decoded pictures")
    return text


def check_ranks(settings: Settings, place: Place) -> str:
    """The devices and machines against the platform and the batch. Raises ConflictError."""
    here = team.of(settings, place)
    return f"{len(here)} on this machine, of {here[0].size}"


def check_shared_memory(train: TrainSettings) -> str | Caution:
    """The shared memory, which only several devices need."""
    devices, size = train.devices or gpus.count(), memory.shared()
    text = "no shared memory" if size is None else f"{_megabytes(size)} MB of shared memory"
    if devices > 1 and (size or 0) < _NCCL_WANTS:
        return Caution(
            f"{text}, little for {devices} devices", "give more by --shm-size 1g, or a memory-backed emptyDir"
        )
    return text + ("" if devices > 1 else ", and one device needs none")


def check_memory(settings: Settings) -> str:
    """What may be used, against the libraries and one slice of a batch. Raises ConflictError."""
    train, side = settings.train, settings.data.image_size
    batch = train.batch_size // train.accumulate * side * side * 3 * 4  # as float32, the network's own maps left out
    room.check_memory(batch)
    limit = memory.limit()
    allowed = "no limit is known" if limit is None else f"{_megabytes(limit)} MB may be used"
    return f"{allowed}, more than {_megabytes(room.LEAST_MEMORY + batch)} MB needed"


def check_device(accelerator: str) -> str | Caution:
    """The NVIDIA driver against the CUDA that torch was built for. Raises ConflictError."""
    if accelerator in ("cpu", "mps"):
        return f"{accelerator}, as --accelerator says"
    found, cuda = driver.here(), driver.wheel_cuda()
    if sentence := driver.trouble(cuda, found):
        raise ConflictError(sentence)
    if found.given:
        return f"{found.text}, torch built for CUDA {cuda}"
    what, _, mend = driver.absent(found).rpartition(": ")
    if accelerator == "cuda" and found.cuda is None:  # a library without devices of this name is torch's to judge
        what = what or "--accelerator is cuda, and there is no NVIDIA GPU"
        raise ConflictError(f"{what}: give the job one, or say --accelerator cpu.")
    return Caution(what, mend.rstrip(".")) if what else "no NVIDIA driver here: torch takes what else there is"


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f}"
