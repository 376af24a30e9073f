"""Which ranks work on a run: all of one machine's devices, or of several machines as the platform says."""

from inat_job.distributed import ranks
from inat_job.distributed.ranks import Rank
from inat_job.errors import ConflictError
from inat_job.host import nvidia
from inat_job.platforms.platform import Platform
from inat_job.settings import Settings, TrainSettings


def local_ranks(settings: Settings, place: Platform) -> list[Rank]:
    """The ranks of this machine. Raises ConflictError for what contradicts the platform, or does not divide a batch."""
    train = settings.train
    nodes = train.num_nodes or place.world
    if place.world not in (1, nodes):
        raise ConflictError(f"--num-nodes is {nodes} and {place.name} says {place.world}: leave it out.")
    if nodes > 1 and (place.master is None or place.rank >= nodes):
        raise ConflictError(
            f"This run has {nodes} machines, this one is number {place.rank}, and rank 0 is at {place.master}: set "
            "NODE_RANK (below --num-nodes) and MASTER_ADDR."
        )
    here = _devices(train)
    check_batch_size(settings, nodes * here)
    return ranks.on_node(nodes, place.rank, here, place.master)


def check_batch_size(settings: Settings, size: int) -> None:
    """Raise ConflictError unless a batch has the same share for each of `size` ranks."""
    batch, slices = settings.train.batch_size, settings.train.accumulate
    if batch % (slices * size):
        raise ConflictError(
            f"--batch-size is {batch}, for all of {size} devices in {slices} slices: make it a multiple of "
            f"{slices * size}, or lower --devices."
        )


def _devices(train: TrainSettings) -> int:
    seen = nvidia.count() if train.accelerator in ("auto", "cuda") else 0
    if train.devices and seen and train.devices > seen:
        raise ConflictError(f"--devices is {train.devices} and this machine has {seen}: lower it, or leave it out.")
    return train.devices or seen or 1
