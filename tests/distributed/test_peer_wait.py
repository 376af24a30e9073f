"""What a rank says of those that it waits for: real processes on the loopback interface."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch._C._distributed_c10d import TCPStore

from inat_job.distributed.peer_wait import named_by_machine
from inat_job.distributed.ranks import Rank

JOIN = """
import sys
from inat_job import events, watchdog
from inat_job.distributed import peer_wait, rendezvous
from inat_job.distributed.ranks import from_environment
from inat_job.errors import JobError
from inat_job.job_status import STATUS
from inat_job.signals import StopFlag
from inat_job.telemetry import liveness
peer_wait.REPORT_EVERY_S = 0.3
events.configure(text=False)
STATUS.phase = "prepare"
if from_environment().rank:
    events.only_warnings()
liveness.start()
try:
    group = rendezvous.join(from_environment(), StopFlag(), limit_s=float(sys.argv[1]))
    assert STATUS.phase == "prepare"
    with group:
        group.barrier()
        assert STATUS.phase == "prepare"
except JobError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


@contextmanager
def joining(rank: Rank, limit_s: float, alive: Path | None = None) -> Iterator["subprocess.Popen[str]"]:
    variables = {**os.environ, **rank.variables(), "INAT_JOB_ALIVE_FILE": str(alive or "")}
    with subprocess.Popen(
        [sys.executable, "-c", JOIN, str(limit_s)],
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def black_hole() -> Iterator[int]:
    """A port whose queue of connections is full, so the kernel drops what else comes, as a firewall does."""
    with ExitStack() as opened:
        hole = opened.enter_context(socket.socket())
        hole.bind(("127.0.0.1", 0))
        hole.listen(0)
        for _ in range(8):
            caller = opened.enter_context(socket.socket())
            caller.setblocking(False)
            caller.connect_ex(hole.getsockname())
        yield int(hole.getsockname()[1])


@pytest.mark.parametrize(
    ("case", "why"),
    [
        pytest.param("wrong name", "no such name|name server does not answer", marks=pytest.mark.soak),
        ("refused", "connection refused"),
        pytest.param("silent", "no answer", marks=pytest.mark.soak),
    ],
)
def test_rank_that_cannot_reach_rank_0_says_where_and_why(case: str, why: str, tmp_path: Path) -> None:
    with ExitStack() as stack:
        port = stack.enter_context(black_hole()) if case == "silent" else free_port()
        address = "no-such-host.invalid" if case == "wrong name" else "127.0.0.1"
        alive = tmp_path / "alive"
        process = stack.enter_context(joining(Rank(1, 2, 0, 1, address, port), 6, alive))
        out, err = process.communicate(timeout=60)
    lines = [json.loads(line) for line in out.splitlines()]
    assert process.returncode == 75
    assert f"Rank 0 was not found at {address} port {port} within 0.1 minutes" in err
    assert "--rendezvous-minutes" in err
    assert re.search(why, err)
    assert {line["phase"] for line in lines} == {"rendezvous"}
    assert f"{address} port {port}" in lines[0]["message"]
    assert re.search(why, lines[-1]["message"])
    assert alive.exists()


@pytest.mark.soak
def test_rank_0_and_the_others_name_the_ranks_that_are_missing() -> None:
    port = free_port()
    ranks = [Rank(number, 4, number % 2, 2, "127.0.0.1", port) for number in range(4)]
    with joining(ranks[1], 40) as second, joining(ranks[2], 40) as third:
        assert third.stdout
        assert "Rank 0" in third.stdout.readline()  # it waits, and so does rank 1, which does not say so
        with joining(ranks[0], 10) as first:
            out, err = first.communicate(timeout=120)
        second.communicate(timeout=120)
        elsewhere, _ = third.communicate(timeout=120)
    warnings = [json.loads(line) for line in out.splitlines() if '"warning"' in line]
    assert warnings[-1]["phase"] == "rendezvous"
    assert "Machine 1 (rank 3)" in warnings[-1]["message"]
    assert first.returncode == 75
    assert "Machine 1 (rank 3)" in err
    assert f"127.0.0.1 port {port}" in err
    assert "Machine 1 (rank 3)" in elsewhere


@pytest.mark.soak
def test_rank_0_that_torchrun_has_not_started_is_missed() -> None:
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    rank = Rank(1, 2, 0, 1, "127.0.0.1", store.port)
    with joining(rank, 2) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "Rank 0 did not come to 127.0.0.1 port" in err
    assert "Rank 0 did not come to 127.0.0.1 port" in out


def test_ranks_are_named_by_machine() -> None:
    assert named_by_machine([3], 2) == "machine 1 (rank 3)"
    assert named_by_machine([2, 3], 2) == "machine 1 (ranks 2, 3)"
    assert named_by_machine([1, *range(8, 16)], 8) == "machine 0 (rank 1), machine 1 (ranks 8 to 15)"
    assert named_by_machine(range(8, 80), 8).endswith("machine 5 (ranks 40 to 47) and 4 more machines")


@given(st.sets(st.integers(0, 500), min_size=1), st.integers(1, 16))
def test_named_ranks_fit_on_a_line(missing: set[int], size: int) -> None:
    assert len(named_by_machine(sorted(missing), size)) < 500
