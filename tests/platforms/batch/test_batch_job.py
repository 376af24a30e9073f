"""batch_job.py: the platform by AWS Batch's variables, for single, array and multi-node jobs."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.errors import ConflictError
from inat_job.platforms.batch.batch_job import detect_batch
from inat_job.platforms.platform import Platform

JOB = "d5b4a1c2-1111-2222-3333-444455556666"


def node_environment(index: int, main: int, num_nodes: int) -> dict[str, str]:
    """The variables that Batch sets on a node of a multi-node job."""
    environment = {
        "AWS_BATCH_JOB_ID": f"{JOB}#{index}",
        "AWS_BATCH_JOB_ATTEMPT": "1",
        "AWS_BATCH_JOB_NUM_NODES": str(num_nodes),
        "AWS_BATCH_JOB_NODE_INDEX": str(index),
        "AWS_BATCH_JOB_MAIN_NODE_INDEX": str(main),
    }
    return environment | ({} if index == main else {"AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": "10.0.0.7"})


def detected(environment: dict[str, str]) -> Platform:
    platform = detect_batch(environment)
    assert platform is not None
    return platform


def test_single_job() -> None:
    platform = detected({"AWS_BATCH_JOB_ID": JOB, "AWS_BATCH_JOB_ATTEMPT": "3"})
    assert (platform.run_id, platform.attempt) == (JOB, 3)
    assert (platform.node_rank, platform.num_nodes, platform.master_address) == (0, 1, None)
    assert platform.settings() == {"run.run_id": JOB, "run.grace_seconds": 30.0}


@given(st.integers(0, 9999))
def test_each_child_of_an_array_job_is_its_own_run(index: int) -> None:
    for job in (f"{JOB}:{index}", JOB):
        platform = detected({"AWS_BATCH_JOB_ID": job, "AWS_BATCH_JOB_ARRAY_INDEX": str(index)})
        assert (platform.run_id, platform.node_rank, platform.num_nodes) == (f"{JOB}-{index}", 0, 1)


@given(st.integers(2, 40), st.data())
def test_main_node_of_a_multi_node_job_is_node_rank_0(num_nodes: int, data: st.DataObject) -> None:
    main = data.draw(st.integers(0, num_nodes - 1))
    platforms = [detected(node_environment(index, main, num_nodes)) for index in range(num_nodes)]
    assert sorted(each.node_rank for each in platforms) == list(range(num_nodes))
    assert platforms[main].node_rank == 0
    assert {each.run_id for each in platforms} == {JOB}
    assert {each.master_address for each in platforms if each.node_rank} == {"10.0.0.7"}
    assert platforms[main].master_address == "127.0.0.1"


def test_multi_node_job_of_one_node() -> None:
    platform = detected(node_environment(0, 0, 1))
    assert (platform.run_id, platform.num_nodes, platform.master_address) == (JOB, 1, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"AWS_BATCH_JOB_NODE_INDEX": "4"}, "AWS_BATCH_JOB_NODE_INDEX is 4"),
        ({"AWS_BATCH_JOB_MAIN_NODE_INDEX": ""}, "AWS_BATCH_JOB_MAIN_NODE_INDEX is None"),
        ({"AWS_BATCH_JOB_NUM_NODES": "-2"}, "AWS_BATCH_JOB_NUM_NODES is '-2'"),
        ({"AWS_BATCH_JOB_ATTEMPT": "first"}, "AWS_BATCH_JOB_ATTEMPT is 'first'"),
        ({"AWS_BATCH_JOB_MAIN_NODE_PRIVATE_IPV4_ADDRESS": ""}, "_IPV4_ADDRESS is not set on node 1"),
    ],
)
def test_contradicting_variables_are_refused(changes: dict[str, str], message: str) -> None:
    with pytest.raises(ConflictError, match=re.escape(message)):
        detect_batch(node_environment(1, 0, 4) | changes)
