"""How ranks find each other, or find that they need not."""

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
from inat_job.errors import ConflictError
from inat_job.signals import StopFlag

LOOKS = """
from inat_job.distributed.ranks import from_environment
from inat_job.signals import StopFlag
from inat_job.distributed.rendezvous import join
looked = iter([False, True])
assert join(from_environment(), StopFlag(), lambda: next(looked)) is None
"""


def test_a_rank_0_that_is_not_there_yet_is_waited_for_without_a_word() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        told = Rank(1, 2, 1, 2, "127.0.0.1", nobody.getsockname()[1]).variables()
        looks = subprocess.run(
            [sys.executable, "-c", LOOKS], env={**os.environ, **told}, capture_output=True, text=True, timeout=60
        )
    assert (looks.returncode, looks.stdout, looks.stderr) == (0, "", "")


def test_ranks_meet_at_the_port_that_was_held_for_them() -> None:
    with ranks.reserve_port(ranks.on_node(1, 0, 2, None, {})) as (leader, follower):
        assert leader.master_listen_fd is not None
        mine = replace(leader, master_listen_fd=os.dup(leader.master_listen_fd))  # as a process of its own has it
        heard: list[object] = []
        thread = threading.Thread(target=lambda: heard.append(join(follower, StopFlag())))
        thread.start()
        group = join(mine, StopFlag())
        thread.join(10)
    assert group
    assert group.is_main
    assert heard != [None]


def test_a_known_port_that_is_taken_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConflictError, match=f"Port {port} is taken.*MASTER_PORT"):
            join(Rank(0, 2, 0, 1, "127.0.0.1", port), StopFlag())
