"""Whether the machine has room for a run: said before the work where it can be known, not when hours are lost."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from inat_job.errors import ConflictError
from inat_job.platforms import memory

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
