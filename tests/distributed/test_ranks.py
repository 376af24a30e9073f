"""ranks.py: reading a rank from torchrun's variables, and starting the ranks of a machine."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.distributed import ranks
from inat_job.distributed.ranks import Rank
from inat_job.errors import ConflictError

FOLLOWER = Rank(1, 2, 1, 2, "host", 29500)


@given(st.integers(1, 16), st.integers(1, 8), st.data())
def test_ranks_are_numbered_by_node_and_survive_the_environment(
    num_nodes: int, local_world_size: int, data: st.DataObject
) -> None:
    nodes = [ranks.on_node(num_nodes, node, local_world_size, "host", {}) for node in range(num_nodes)]
    world = [rank for node in nodes for rank in node]
    assert [rank.rank for rank in world] == list(range(num_nodes * local_world_size))
    rank = data.draw(st.sampled_from(world))
    assert ranks.from_environment(rank.variables()) == rank
    assert rank.node_rank == rank.rank // local_world_size
    assert rank.local_rank == rank.rank % local_world_size


def test_no_rank_without_local_rank() -> None:
    assert ranks.from_environment({"RANK": "1", "WORLD_SIZE": "2"}) is None


def test_agent_store_of_torchrun() -> None:
    variables = {**FOLLOWER.variables(), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    assert ranks.from_environment(variables) == Rank(1, 2, 1, 2, "host", 29500, agent_store=True)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is not set"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"RANK": "2"}, "contradict"),
        ({"LOCAL_RANK": "0"}, "contradict"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT is 'x'"),
    ],
)
def test_contradicting_variables_are_refused(changed: dict[str, str], message: str) -> None:
    with pytest.raises(ConflictError, match=message):
        ranks.from_environment({**FOLLOWER.variables(), **changed})


def test_reserve_port_on_a_single_machine() -> None:
    single = ranks.on_node(1, 0, 2, None, {"MASTER_PORT": "7"})
    assert {rank.master_address for rank in single} == {"127.0.0.1"}
    with ranks.reserve_port(single) as first, ranks.reserve_port(single) as second:
        assert len({rank.master_port for rank in first}) == 1
        assert first[0].master_port not in {0, 7, second[0].master_port}
        assert [rank.master_listen_fd is None for rank in first] == [False, True]
        assert ranks.from_environment(first[0].variables()) == first[0]
        with socket.socket() as another, pytest.raises(OSError, match="in use"):
            another.bind((first[0].master_address, first[0].master_port))


def test_several_machines_use_a_known_port() -> None:
    with ranks.reserve_port(ranks.on_node(2, 0, 2, "host", {})) as several:
        assert {(rank.master_port, rank.master_listen_fd) for rank in several} == {(ranks.DEFAULT_PORT, None)}
    assert ranks.on_node(2, 1, 1, "host", {"MASTER_PORT": "7"}) == [Rank(1, 2, 0, 1, "host", 7)]
    assert ranks.on_node(2, 0, 1, "host", {})[0].master_port == ranks.DEFAULT_PORT


@given(st.integers(0, 15), st.integers(0, 16))
def test_gpu_of_a_rank(local_rank: int, visible: int) -> None:
    """Its own where it sees one alone, whatever its number; else that of its number."""
    rank = Rank(local_rank, 16, local_rank, 16)
    if visible != 1 and local_rank >= visible:
        with pytest.raises(ConflictError, match=rf"LOCAL_RANK is {local_rank}, but this process sees {visible} GPUs"):
            ranks.gpu_index(rank, visible)
        return
    assert ranks.gpu_index(rank, visible) == (0 if visible == 1 else local_rank)


@pytest.mark.parametrize("value", ["tcp://10.0.0.1:80", "udp://[fd00::1]:53"])
def test_port_of_a_kubernetes_service_is_not_torchruns(value: str) -> None:
    environment = {"MASTER_PORT": value, "MASTER_SERVICE_HOST": "10.0.0.1"}
    assert ranks.on_node(2, 0, 1, "host", environment)[0].master_port == ranks.DEFAULT_PORT
    assert ranks.from_environment(environment) is None


@pytest.mark.parametrize("value", ["x", "9" * 5000, "-1", "\u00b2"])
def test_port_that_is_no_number_is_a_conflict(value: str) -> None:
    with pytest.raises(ConflictError, match="MASTER_PORT"):
        ranks.on_node(2, 0, 1, "host", {"MASTER_PORT": value})
