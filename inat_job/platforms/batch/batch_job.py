"""AWS Batch's contract: all that it says is in variables, of single, array and multi-node jobs.

https://docs.aws.amazon.com/batch/latest/userguide/job_env_vars.html
"""

from collections.abc import Mapping

from inat_job.errors import ConflictError
from inat_job.platforms.platform import Platform, run_id_of, whole

NAME = "AWS Batch"

GRACE_S = 30.0
"""Seconds between SIGTERM and SIGKILL when a job is terminated or times out."""

_JOB, _ATTEMPT, _ARRAY = "AWS_BATCH_JOB_ID", "AWS_BATCH_JOB_ATTEMPT", "AWS_BATCH_JOB_ARRAY_INDEX"
_NODES, _NODE, _MAIN = "AWS_BATCH_JOB_NUM_NODES", "AWS_BATCH_JOB_NODE_INDEX", "AWS_BATCH_JOB_MAIN_NODE_INDEX"
_ADDRESS = "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"


def place(environment: Mapping[str, str]) -> Platform | None:
    """What Batch says, or None where this is not Batch. Raises ConflictError for what contradicts itself."""
    if not environment.get(_JOB):
        return None
    rank, world, master = _nodes(environment)
    return Platform(
        name=NAME,
        run_id=run_id_of(_job(environment, world)),
        attempt=whole(environment, _ATTEMPT),
        rank=rank,
        world=world,
        master=master,
        grace_s=GRACE_S,
    )


def _job(environment: Mapping[str, str], world: int) -> str:
    """The job's id: a child of an array is a run of its own, the nodes of a multi-node job work on one."""
    job, index = environment[_JOB], whole(environment, _ARRAY)
    if index is not None and not job.endswith(f":{index}"):
        return f"{job}:{index}"
    return job.partition("#")[0] if world > 1 or _NODES in environment else job  # a node's id is the job's, # and index


def _nodes(environment: Mapping[str, str]) -> tuple[int, int, str | None]:
    """Rank, world and master; torch's rank 0 is the main node, whose status is the job's, whatever its index."""
    world = whole(environment, _NODES) or 1
    if world == 1:
        return 0, 1, None
    index, main = whole(environment, _NODE), whole(environment, _MAIN)
    if index is None or main is None or not (index < world and main < world):
        raise ConflictError(
            f"{_NODES} is {world}, {_NODE} is {index} and {_MAIN} is {main}: both must be set, and less than the first."
        )
    if index == main:
        return 0, world, "127.0.0.1"  # it alone is not told its own address
    if not environment.get(_ADDRESS):
        raise ConflictError(f"{_ADDRESS} is not set on node {index}, which is not the main one: Batch must set it.")
    return index + (index < main), world, environment[_ADDRESS]
