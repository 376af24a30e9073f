"""Which rank a process is, by torchrun's variables, and which a machine starts."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.distributed import ranks
from inat_job.distributed.ranks import Rank
from inat_job.errors import ConflictError


@given(st.integers(1, 16), st.integers(1, 8), st.data())
def test_every_rank_of_every_machine_is_told_apart_and_reads_what_it_was_told(
    nodes: int, here: int, data: st.DataObject
) -> None:
    every = [rank for node in range(nodes) for rank in ranks.machine(nodes, node, here, "host", {})]
    assert [rank.rank for rank in every] == list(range(nodes * here))
    one = data.draw(st.sampled_from(every))
    assert ranks.own(one.variables()) == one
    assert one.node == one.rank // here
    assert one.local == one.rank % here


def test_a_process_without_a_local_rank_is_none() -> None:
    assert ranks.own({"RANK": "1", "WORLD_SIZE": "2"}) is None


def test_torchruns_agent_may_keep_the_store() -> None:
    told = Rank(1, 2, 1, 2, "host", 29500).variables()
    assert ranks.own({**told, "TORCHELASTIC_USE_AGENT_STORE": "True"}) == Rank(1, 2, 1, 2, "host", 29500, hosted=True)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE is not set"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"RANK": "2"}, "contradict"),
        ({"LOCAL_RANK": "0"}, "contradict"),
        ({"MASTER_PORT": "x"}, "MASTER_PORT is 'x'"),
    ],
)
def test_what_contradicts_is_refused(changed: dict[str, str], words: str) -> None:
    with pytest.raises(ConflictError, match=words):
        ranks.own({**Rank(1, 2, 1, 2, "host", 29500).variables(), **changed})


def test_one_machine_holds_a_free_port_for_rank_0_and_several_take_a_known_one() -> None:
    alone = ranks.machine(1, 0, 2, None, {"MASTER_PORT": "7"})
    assert {rank.master for rank in alone} == {"127.0.0.1"}
    with ranks.bind(alone) as first, ranks.bind(alone) as second:
        assert len({rank.port for rank in first}) == 1
        assert first[0].port not in {0, 7, second[0].port}
        assert [rank.bound is None for rank in first] == [False, True]
        assert ranks.own(first[0].variables()) == first[0]
        with socket.socket() as another, pytest.raises(OSError, match="in use"):
            another.bind((first[0].master, first[0].port))
    with ranks.bind(ranks.machine(2, 0, 2, "host", {})) as several:
        assert {(rank.port, rank.bound) for rank in several} == {(ranks.PORT, None)}
    assert ranks.machine(2, 1, 1, "host", {"MASTER_PORT": "7"}) == [Rank(1, 2, 0, 1, "host", 7)]
    assert ranks.machine(2, 0, 1, "host", {})[0].port == ranks.PORT
