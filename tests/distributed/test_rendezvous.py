"""How ranks find rank 0, or find that the run is finished."""

import os
import socket
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from inat_job.distributed import ranks
from inat_job.distributed.ranks import Rank
from inat_job.distributed.rendezvous import join
from inat_job.errors import ConflictError, Preempted
from inat_job.signals import StopFlag

JOIN_LATE = """
from inat_job import events
from inat_job.distributed.ranks import from_environment
from inat_job.signals import StopFlag
from inat_job.distributed.rendezvous import join
events.only_warnings()
finished = iter([False, True])
assert join(from_environment(), StopFlag(), lambda: next(finished)) is None
"""


@pytest.mark.soak
def test_join_waits_silently_for_rank_0_and_stops_when_the_run_is_finished() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        told = Rank(1, 2, 1, 2, "127.0.0.1", nobody.getsockname()[1]).variables()
        looks = subprocess.run(
            [sys.executable, "-c", JOIN_LATE], env={**os.environ, **told}, capture_output=True, text=True, timeout=60
        )
    assert (looks.returncode, looks.stdout, looks.stderr) == (0, "", "")


def test_ranks_join_at_the_port_reserved_for_them() -> None:
    with ranks.reserve_port(ranks.on_node(1, 0, 2, None, {})) as (leader, follower):
        assert leader.master_listen_fd is not None
        mine = replace(leader, master_listen_fd=os.dup(leader.master_listen_fd))  # as a process of its own has it
        joined: list[object] = []
        thread = threading.Thread(target=lambda: joined.append(join(follower, StopFlag())))
        thread.start()
        group = join(mine, StopFlag())
        thread.join(10)
    assert group
    assert group.is_main
    assert joined != [None]


def test_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConflictError, match=f"Port {port}.*is taken.*MASTER_PORT"):
            join(Rank(0, 2, 0, 1, "127.0.0.1", port), StopFlag())


def test_rank_0_does_not_ask_whether_the_run_is_finished() -> None:
    """It holds the lease by then, and a run that it has just started may not count as another one's."""
    stop = StopFlag()

    def asked() -> bool:
        raise AssertionError("rank 0 asked")

    threading.Timer(0.5, stop.set, ["SIGTERM"]).start()
    with pytest.raises(Preempted, match="looking for rank 0"):
        join(Rank(0, 2, 0, 1, "no-such-host.invalid", 29500), stop, asked)
