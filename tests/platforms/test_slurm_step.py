"""slurm_step.py: the platform by Slurm's variables, in a job's script, a shell and a step."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.distributed import world
from inat_job.errors import ConflictError
from inat_job.platforms import detect
from inat_job.platforms.platform import Platform
from inat_job.platforms.slurm_step import first_host
from inat_job.recipes import RECIPES

# The variables that Slurm 22.05 sets. The script of a job on two machines, and the shell of salloc, have no step.
JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_NNODES": "2", "SLURM_JOB_NODELIST": "gpu-[01-02]"}
SCRIPT = {**JOB, "SLURM_PROCID": "0", "SLURM_NODEID": "0", "SLURM_LOCALID": "0", "SLURM_NTASKS": "2"}


def step(node: int, nodes: int = 2, tasks: int = 2, node_list: str = "gpu-[01-02]") -> dict[str, str]:
    """The variables of a task that srun starts on machine `node` of `nodes`, which `node_list` names."""
    return {
        **JOB,
        "SLURM_STEP_ID": "0",
        "SLURM_NODEID": str(node),
        "SLURM_PROCID": str(node),
        "SLURM_STEP_NUM_NODES": str(nodes),
        "SLURM_STEP_NUM_TASKS": str(tasks),
        "SLURM_STEP_NODELIST": node_list,
    }


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SCRIPT, {}),
        (JOB, {}),  # the shell of salloc
        ({**step(0, nodes=1, tasks=1, node_list="gpu-01"), "SLURM_STEP_ID": "4294967290"}, {}),  # its interactive step
        (step(0, nodes=1, tasks=1, node_list="gpu-02"), {}),  # srun --pty bash; one machine of a larger job
        (step(0), {"num_nodes": 2, "master_address": "gpu-01"}),
        (step(1), {"num_nodes": 2, "master_address": "gpu-01", "node_rank": 1}),
        (
            step(2, nodes=3, tasks=3, node_list="b[3,5-6]"),
            {"num_nodes": 3, "master_address": "b3", "node_rank": 2},
        ),
        (
            {**step(1), "SLURM_RESTART_COUNT": "2", "MASTER_ADDR": "10.0.0.1"},
            {"num_nodes": 2, "master_address": "10.0.0.1", "node_rank": 1, "attempt": 3},
        ),
        (
            {**step(1, tasks=4), "INAT_NUM_NODES": "3", "NODE_RANK": "2", "MASTER_ADDR": "h"},
            {"num_nodes": 3, "master_address": "h", "node_rank": 2},
        ),
    ],
)
def test_machines_of_a_step(environment: dict[str, str], expected: dict[str, Any], tmp_path: Path) -> None:
    platform = Platform("Slurm", **{"attempt": 1, **expected})
    assert detect.detect_platform({**environment, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path) == platform
    assert platform.settings() == {}


@pytest.mark.parametrize(("nodes", "tasks", "machines"), [(1, 2, "1 machine,"), (2, 4, "2 machines,")])
def test_several_tasks_on_a_machine_do_not_train(nodes: int, tasks: int, machines: str, tmp_path: Path) -> None:
    platform = detect.detect_platform(step(0, nodes, tasks), tmp_path)
    with pytest.raises(ConflictError, match=f"{tasks} tasks on {machines}.*--ntasks-per-node=1"):
        world.local_ranks(RECIPES["a"](), platform)


@pytest.mark.parametrize(("node", "name"), [("2", "SLURM_NODEID is 2"), ("", "SLURM_NODEID is None"), ("x", "'x'")])
def test_contradicting_variables_are_refused(node: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match=name):
        detect.detect_platform({**step(0), "SLURM_NODEID": node}, tmp_path)


@pytest.mark.parametrize(
    ("node_list", "host"),  # as `scontrol show hostnames` expands them
    [
        ("tux[1-3]", "tux1"),
        ("node[1-3,7],other-[01-02]", "node1"),
        ("other-[01-02],node[1-3,7]", "other-01"),
        ("n[09-11]", "n09"),
        ("a[0-1]b[2-3],c", "a0b2"),
        ("c,a[0-1]", "c"),
        ("gpu-1.cluster.local", "gpu-1.cluster.local"),
        ("", None),
        ("[", None),
    ],
)
def test_first_host_of_a_list(node_list: str, host: str | None) -> None:
    assert first_host(node_list) == host


numbers = st.integers(0, 999)
ranges = st.lists(st.tuples(numbers, st.none() | numbers), min_size=1, max_size=4)
names = st.text("abcz-.", min_size=1, max_size=5)


@given(st.lists(st.tuples(names, st.lists(ranges, max_size=2)), min_size=1, max_size=4))
def test_first_host_of_any_list(hosts: list[tuple[str, list[list[tuple[int, int | None]]]]]) -> None:
    """Each host is a name and up to two lists of numbers, zero-padded, and ranges."""

    def listed(number: tuple[int, int | None]) -> str:
        first, last = number
        return f"{first:03}" if last is None else f"{first:03}-{first + last:03}"

    node_list = ",".join(name + "".join(f"[{','.join(map(listed, each))}]" for each in lists) for name, lists in hosts)
    name, lists = hosts[0]
    assert first_host(node_list) == name + "".join(f"{each[0][0]:03}" for each in lists)
