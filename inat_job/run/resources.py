"""What a run needs of its machine (disk, shared memory, memory, device), checked before the work begins."""

import importlib.util
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from inat_job.distributed import world
from inat_job.errors import ConflictError, NoPermissionError
from inat_job.host import memory, nvidia
from inat_job.ingest.build_cache import unfinished_bytes
from inat_job.ingest.inspect import DataSetSummary
from inat_job.platforms.platform import Platform
from inat_job.run.checks import CheckWarning
from inat_job.settings import Settings, TrainSettings
from inat_job.storage.disk import disk_errors, megabytes

if TYPE_CHECKING:
    from inat_job.models.strategies import Architecture  # imports torch, which this module must not

LEAST_MEMORY = 400 * 2**20
"""Bytes of memory (RssAnon) that importing torch, torchvision and Lightning takes; measured, rounded down."""

_EXPORT_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

_NCCL_SHARED_MEMORY = 2**30
"""Bytes of shared memory for several devices on a machine:
https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/troubleshooting.html#shared-memory"""

_MOST_CHECKPOINTS = 5
"""Checkpoints in the run's folder at most: the best, the last two, the one resumed from, and the next."""


def check_disk(settings: Settings, data: DataSetSummary | None) -> str | CheckWarning:
    """The free disk of `--cache-dir`, compared with what the data set takes. Raises NoPermissionError, ConflictError.

    `data` is None where the data set could not be inspected.
    """
    folder = Path(settings.data.cache_dir).absolute()
    with disk_errors(folder):
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        free = shutil.disk_usage(existing).free + unfinished_bytes(folder)
    if not os.access(existing, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
        raise NoPermissionError(
            f"--cache-dir is {folder}, where user {os.geteuid()} may not write: name another folder."
        )
    if data is None:
        return CheckWarning(f"{megabytes(free)} free in {folder}; what the data set needs is not known", "see data")
    needed = (data.fetched or 0) + (data.decoded or 0)
    if free < needed:
        raise ConflictError(
            f"--cache-dir {folder} has {megabytes(free)} free, and the data set needs {megabytes(needed)}: free some, "
            "or name another folder."
        )
    text = f"{megabytes(free)} free in {folder}, {megabytes(needed)} needed"
    if data.fetched is None or data.decoded is None:
        return CheckWarning(f"{text} and more, which is not known yet", "leave room for the decoded images")
    return text


def check_export(formats: Sequence[str]) -> None:
    """Raise ConflictError if a format of `--export` needs a package that is not installed."""
    needed = _EXPORT_PACKAGES if "onnx" in formats else ()
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise ConflictError(
            f"--export onnx needs {' and '.join(missing)}, not installed here: pip install {' '.join(missing)}, or "
            "leave it out."
        )


def check_ranks(settings: Settings, platform: Platform) -> str:
    """The devices and machines, against the platform and the batch size. Raises ConflictError."""
    local = world.local_ranks(settings, platform)
    return f"{len(local)} on this machine, of {local[0].world_size}"


def check_shared_memory(train: TrainSettings) -> str | CheckWarning:
    """The shared memory, which only several devices on one machine need."""
    devices, size = train.devices or nvidia.gpu_count(), memory.shared_bytes()
    text = "no shared memory" if size is None else f"{megabytes(size)} of shared memory"
    if devices > 1 and (size or 0) < _NCCL_SHARED_MEMORY:
        return CheckWarning(
            f"{text}, little for {devices} devices", "give more by --shm-size 1g, or a memory-backed emptyDir"
        )
    return text + ("" if devices > 1 else ", and one device needs none")


def check_job_memory(settings: Settings) -> str:
    """The memory limit, compared with the libraries and one slice of a batch. Raises ConflictError."""
    train, side = settings.train, settings.data.eval_size
    batch = train.batch_size // train.accumulate * side * side * 3 * 4  # as float32, without the network's own maps
    check_memory(batch)
    limit = memory.limit_bytes()
    allowed = "no limit is known" if limit is None else f"{megabytes(limit)} may be used"
    return f"{allowed}, more than {megabytes(LEAST_MEMORY + batch)} needed"


def check_device(train: TrainSettings, seconds: float = 0.0) -> str | CheckWarning:
    """The NVIDIA driver and the GPUs, compared with what torch was built for. Raises ConflictError.

    With `seconds` for it, torch itself is asked which GPUs it has code for; else its CUDA version tells the oldest.
    """
    accelerator = train.accelerator
    if accelerator in ("cpu", "mps"):
        return f"{accelerator}, as --accelerator says"
    driver, cuda = nvidia.find_driver(), nvidia.wheel_cuda()
    if problem := nvidia.driver_problem(cuda, driver):
        raise ConflictError(problem)
    if driver.has_gpu:
        gpus = nvidia.visible_gpus()[: train.devices]
        built = nvidia.wheel_architectures(seconds) if gpus and seconds else ()
        if problem := nvidia.architecture_problem(gpus, built or nvidia.oldest_architecture(cuda)):
            raise ConflictError(problem)
        return ", ".join([*(gpu.name for gpu in gpus), driver.text, f"torch built for CUDA {cuda}"])
    message, _, fix = nvidia.unused_driver(driver).rpartition(": ")
    if accelerator == "cuda" and driver.cuda is None:  # with the library but no device, torch decides
        message = message or "--accelerator is cuda, and there is no NVIDIA GPU"
        raise ConflictError(f"{message}: give the job one, or set --accelerator cpu.")
    if message:
        return CheckWarning(message, fix.rstrip("."))
    return "no NVIDIA driver: torch chooses among the other devices"


def check_memory(additional: int = 0) -> None:
    """Raise ConflictError if the job may not use what its libraries need and `additional` bytes."""
    limit, needed = memory.limit_bytes(), LEAST_MEMORY + additional
    if limit is not None and limit < needed:
        raise ConflictError(
            f"The job may use {megabytes(limit)} of memory and needs more than {megabytes(needed)}: raise the "
            "container's limit, or use a larger machine."
        )


def check_training(architecture: "Architecture", train: TrainSettings, folder: Path) -> None:
    """Raise ConflictError if memory, or the disk of the run's `folder`, cannot hold what training this network takes.

    A state is the weights, the optimiser's moments of each trained parameter, and with --ema its average. Memory holds
    it, a copy of it and the gradients; the disk holds one for each checkpoint that retention keeps.
    """
    weights = sum(tensor.nbytes for tensor in architecture.network.state_dict().values())
    trained = architecture.trained_bytes()
    state = weights + ((1 if train.optimiser == "sgd" else 2) + (train.ema > 0)) * trained
    check_memory(2 * state + trained)
    present = sum(path.stat().st_size for path in (folder / "checkpoints").glob("*.ckpt"))
    needed, free = _MOST_CHECKPOINTS * state - present, shutil.disk_usage(folder).free
    if free < needed:
        raise ConflictError(
            f"{folder} has {megabytes(free)} free, and the checkpoints need {megabytes(needed)}: free some, or choose "
            "a folder on a larger disk (--output; with a bucket it is --cache-dir)."
        )
