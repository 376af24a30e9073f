"""Slurm's contract with a program: the environment variables of a job, and of the step that srun started it in.

https://slurm.schedmd.com/srun.html#SECTION_OUTPUT-ENVIRONMENT-VARIABLES
"""

import re
from collections.abc import Mapping

from inat_job.errors import ConflictError
from inat_job.platforms.platform import Platform, read_int

NAME = "Slurm"

_NUM_NODES, _NUM_TASKS, _NODE_LIST = "SLURM_STEP_NUM_NODES", "SLURM_STEP_NUM_TASKS", "SLURM_STEP_NODELIST"


def detect_slurm(environment: Mapping[str, str]) -> Platform | None:
    """The platform by Slurm's variables, None outside of a job. Raises ConflictError if they contradict each other.

    Only a step has several machines: the script of a job and the shell of salloc run on one, whatever the job has. The
    run is named after its settings, as on any machine, since one allocation may run several commands.
    """
    if not environment.get("SLURM_JOB_ID"):
        return None
    attempt = (read_int(environment, "SLURM_RESTART_COUNT") or 0) + 1
    num_nodes, num_tasks = read_int(environment, _NUM_NODES) or 1, read_int(environment, _NUM_TASKS) or 1
    if num_tasks > num_nodes:
        problem = (
            f"srun started {num_tasks} tasks on {num_nodes} machine{'s' * (num_nodes > 1)}, and the job itself starts "
            "a rank for each device: set --ntasks-per-node=1, and --cpus-per-task for the cores."
        )
        return Platform(NAME, attempt=attempt, node_problem=problem)
    if num_nodes == 1:
        return Platform(NAME, attempt=attempt)
    node_rank = read_int(environment, "SLURM_NODEID")
    if node_rank is None or node_rank >= num_nodes:
        raise ConflictError(f"{_NUM_NODES} is {num_nodes} and SLURM_NODEID is {node_rank}: start the job by srun.")
    return Platform(
        NAME,
        attempt=attempt,
        node_rank=node_rank,
        num_nodes=num_nodes,
        master_address=environment.get("MASTER_ADDR") or first_host(environment.get(_NODE_LIST, "")),
    )


def first_host(node_list: str) -> str | None:
    """The first host of a list such as `node[1-3,7],other-[01-02]`, None for an empty one.

    `scontrol show hostnames` tells the same, but a container has no scontrol.
    """
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", node_list.strip())
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first[0]) or None if first else None
