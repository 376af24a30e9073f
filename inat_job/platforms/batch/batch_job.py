"""AWS Batch's contract with a container: environment variables of single, array and multi-node jobs.

https://docs.aws.amazon.com/batch/latest/userguide/job_env_vars.html
"""

from collections.abc import Mapping

from inat_job.errors import ConflictError
from inat_job.platforms.platform import Platform, read_int, run_id_from

NAME = "AWS Batch"

GRACE_S = 30.0
"""Seconds between SIGTERM and SIGKILL when a job is terminated or times out."""

_JOB_ID, _ATTEMPT, _ARRAY_INDEX = "AWS_BATCH_JOB_ID", "AWS_BATCH_JOB_ATTEMPT", "AWS_BATCH_JOB_ARRAY_INDEX"
_NUM_NODES, _NODE_INDEX = "AWS_BATCH_JOB_NUM_NODES", "AWS_BATCH_JOB_NODE_INDEX"
_MAIN_INDEX, _MAIN_ADDRESS = "AWS_BATCH_JOB_MAIN_NODE_INDEX", "AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS"


def detect_batch(environment: Mapping[str, str]) -> Platform | None:
    """The platform by Batch's variables, None outside of Batch. Raises ConflictError if they contradict each other."""
    if not environment.get(_JOB_ID):
        return None
    node_rank, num_nodes, master_address = _nodes(environment)
    return Platform(
        name=NAME,
        run_id=run_id_from(_job_name(environment, num_nodes)),
        attempt=read_int(environment, _ATTEMPT),
        node_rank=node_rank,
        num_nodes=num_nodes,
        master_address=master_address,
        grace_s=GRACE_S,
    )


def _job_name(environment: Mapping[str, str], num_nodes: int) -> str:
    """The job's id: each child of an array job is its own run, the nodes of a multi-node job share one."""
    job_id, index = environment[_JOB_ID], read_int(environment, _ARRAY_INDEX)
    if index is not None and not job_id.endswith(f":{index}"):
        return f"{job_id}:{index}"
    is_node = num_nodes > 1 or _NUM_NODES in environment
    return job_id.partition("#")[0] if is_node else job_id  # a node's id is the job's id, # and the node's index


def _nodes(environment: Mapping[str, str]) -> tuple[int, int, str | None]:
    """Node rank, number of nodes and master address.

    The main node gets node rank 0 whatever its index, because its status is the job's.
    """
    num_nodes = read_int(environment, _NUM_NODES) or 1
    if num_nodes == 1:
        return 0, 1, None
    index, main = read_int(environment, _NODE_INDEX), read_int(environment, _MAIN_INDEX)
    if index is None or main is None or not (index < num_nodes and main < num_nodes):
        raise ConflictError(
            f"{_NUM_NODES} is {num_nodes}, {_NODE_INDEX} is {index} and {_MAIN_INDEX} is {main}: both indices must be "
            "set and be less than the number of nodes."
        )
    if index == main:
        return 0, num_nodes, "127.0.0.1"  # Batch does not give the main node its own address
    if not environment.get(_MAIN_ADDRESS):
        raise ConflictError(f"{_MAIN_ADDRESS} is not set on node {index}, which is not the main node: Batch sets it.")
    return index + (index < main), num_nodes, environment[_MAIN_ADDRESS]
