"""Checks of the machine before a job: disk, shared memory, memory and device, compared with what the settings need."""

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from inat_job.distributed import world
from inat_job.errors import ConflictError, NoPermissionError
from inat_job.host import memory, nvidia
from inat_job.ingest.build_cache import unfinished_bytes
from inat_job.ingest.inspect import DataSetSummary
from inat_job.platforms.platform import Platform
from inat_job.run.checks import Caution
from inat_job.settings import Settings, TrainSettings
from inat_job.storage.disk import disk_errors

_NCCL_WANTS = 2**30
"""Bytes of shared memory for several devices on a machine:
https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html#shared-memory"""


def check_disk(settings: Settings, looked: DataSetSummary | None) -> str | Caution:
    """The disk of `--cache-dir`, against what is known of the data set. Raises NoPermissionError and ConflictError."""
    folder = Path(settings.data.cache_dir).absolute()
    with disk_errors(folder):
        there = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(there).free + unfinished_bytes(folder)
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
        return Caution(f"{text} and more, which is not known yet", "leave room for the decoded images")
    return text


def check_ranks(settings: Settings, place: Platform) -> str:
    """The devices and machines against the platform and the batch. Raises ConflictError."""
    here = world.of(settings, place)
    return f"{len(here)} on this machine, of {here[0].size}"


def check_shared_memory(train: TrainSettings) -> str | Caution:
    """The shared memory, which only several devices need."""
    devices, size = train.devices or nvidia.count(), memory.shared()
    text = "no shared memory" if size is None else f"{_megabytes(size)} MB of shared memory"
    if devices > 1 and (size or 0) < _NCCL_WANTS:
        return Caution(
            f"{text}, little for {devices} devices", "give more by --shm-size 1g, or a memory-backed emptyDir"
        )
    return text + ("" if devices > 1 else ", and one device needs none")


def check_job_memory(settings: Settings) -> str:
    """What may be used, against the libraries and one slice of a batch. Raises ConflictError."""
    train, side = settings.train, settings.data.image_size
    batch = train.batch_size // train.accumulate * side * side * 3 * 4  # as float32, the network's own maps left out
    check_memory(batch)
    limit = memory.limit()
    allowed = "no limit is known" if limit is None else f"{_megabytes(limit)} MB may be used"
    return f"{allowed}, more than {_megabytes(LEAST_MEMORY + batch)} MB needed"


def check_device(accelerator: str) -> str | Caution:
    """The NVIDIA driver against the CUDA that torch was built for. Raises ConflictError."""
    if accelerator in ("cpu", "mps"):
        return f"{accelerator}, as --accelerator says"
    found, cuda = nvidia.here(), nvidia.wheel_cuda()
    if sentence := nvidia.trouble(cuda, found):
        raise ConflictError(sentence)
    if found.given:
        return f"{found.text}, torch built for CUDA {cuda}"
    what, _, mend = nvidia.absent(found).rpartition(": ")
    if accelerator == "cuda" and found.cuda is None:  # a library without devices of this name is torch's to judge
        what = what or "--accelerator is cuda, and there is no NVIDIA GPU"
        raise ConflictError(f"{what}: give the job one, or say --accelerator cpu.")
    return Caution(what, mend.rstrip(".")) if what else "no NVIDIA driver here: torch takes what else there is"


if TYPE_CHECKING:
    from inat_job.models.strategies import Architecture  # which needs torch, and this room is asked before

LEAST_MEMORY = 400 * 2**20
"""Bytes that torch, torchvision and Lightning have taken (RssAnon) once they are imported; measured, rounded down."""

_CHECKPOINTS = 5
"""Checkpoints that lie in the run's folder at most: the best, the last two, the one resumed from, and the next."""


def check_memory(further: int = 0) -> None:
    """Raise ConflictError if the job may not even use what its libraries need and `further` bytes."""
    limit, needed = memory.limit(), LEAST_MEMORY + further
    if limit is not None and limit < needed:
        raise ConflictError(
            f"The job may use {_megabytes(limit)} MB of memory and needs more than {_megabytes(needed)} MB: raise the "
            "container's limit, or use a larger machine."
        )


def check_training(architecture: "Architecture", folder: Path) -> None:
    """Raise ConflictError if memory, or the disk of the run's `folder`, cannot hold what training this network takes.

    Memory: weights, and for what is trained a gradient and AdamW's two moments. Disk: that without gradients, as often
    as retention keeps it.
    """
    weights = sum(tensor.nbytes for tensor in architecture.network.state_dict().values())
    trained = architecture.trained_bytes()
    check_memory(weights + 3 * trained)
    present = sum(path.stat().st_size for path in (folder / "checkpoints").glob("*.ckpt"))
    needed, free = _CHECKPOINTS * (weights + 2 * trained) - present, shutil.disk_usage(folder).free
    if free < needed:
        raise ConflictError(
            f"{folder} has {_megabytes(free)} MB free, and the checkpoints need {_megabytes(needed)} MB: free some, or "
            "choose a folder on a larger disk (--output; with s3:// it is --cache-dir)."
        )


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.0f}"
