"""Which ranks work on a run: one for each device of this machine, times the machines that the platform reports."""

from inat_job.distributed import ranks
from inat_job.distributed.ranks import Rank
from inat_job.errors import ConflictError
from inat_job.host import nvidia
from inat_job.platforms.platform import Platform
from inat_job.settings import Settings, TrainSettings


def local_ranks(settings: Settings, platform: Platform) -> list[Rank]:
    """The ranks of this machine.

    Raises ConflictError for settings that contradict the platform, or where the batch size does not divide.
    """
    train = settings.train
    if platform.node_problem:
        raise ConflictError(platform.node_problem)
    num_nodes, node_rank = train.num_nodes or platform.num_nodes, platform.node_rank
    master_address = platform.master_address
    if platform.num_nodes not in (1, num_nodes):
        raise ConflictError(
            f"--num-nodes is {num_nodes}, but {platform.name} says {platform.num_nodes}: leave out --num-nodes."
        )
    if num_nodes > 1 and (master_address is None or node_rank >= num_nodes):
        raise ConflictError(
            f"This run has {num_nodes} machines, this one is number {node_rank}, and rank 0 is at {master_address}: "
            "set NODE_RANK (below --num-nodes) and MASTER_ADDR."
        )
    local_world_size = _device_count(train)
    check_batch_size(settings, num_nodes * local_world_size)
    return ranks.on_node(num_nodes, node_rank, local_world_size, master_address)


def check_batch_size(settings: Settings, world_size: int) -> None:
    """Raise ConflictError unless every rank gets the same share of a batch."""
    batch, slices = settings.train.batch_size, settings.train.accumulate
    divisor = slices * world_size
    if batch % divisor:
        raise ConflictError(
            f"--batch-size is {batch}, which {world_size} devices{f' in {slices} slices' if slices > 1 else ''} cannot "
            f"split evenly: use a multiple of {divisor}, or lower --devices."
        )
    share = batch // divisor
    if settings.train.mixes and world_size > 1 and share % 2:
        raise ConflictError(
            f"--batch-size is {batch}, of which each of {world_size} devices gets {share}, but --mixup and --cutmix "
            f"mix pairs of images: use a multiple of {2 * divisor}."
        )


def _device_count(train: TrainSettings) -> int:
    found = nvidia.gpu_count() if train.accelerator in ("auto", "cuda") else 0
    if train.devices and found and train.devices > found:
        raise ConflictError(f"--devices is {train.devices}, but this machine has {found}: lower it, or leave it out.")
    return train.devices or found or 1
