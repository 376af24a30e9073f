"""Starts a machine's ranks, passes signals on to them, and ends as the run did: the first cause speaks for all.

It is no rank itself, so no rank's end ends another in the middle of its upload. docs/decisions/0013.
"""

import json
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from inat_job.distributed import ranks
from inat_job.distributed.ranks import Rank
from inat_job.errors import Preempted, RankError, TransientError
from inat_job.job_status import STATUS
from inat_job.signals import StopFlag, reserve_s

LOST_S = 25.0
"""Seconds that the others have to store what they have, once a rank has failed."""

_LEADER_GONE_S = 15.0
_RESERVES = 1.5
"""Of signals.reserve_s: after a rank that hangs has said so, and before the supervisor itself is ended."""

_TICK_S = 0.05

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class RankExit:
    """How a rank ended: its exit code, negative for a signal's number, and whether it was asked to."""

    rank: int
    code: int
    asked: bool


def launch(team: Sequence[Rank], grace_s: float, stop: StopFlag) -> None:
    """Do the job by the ranks of this machine. Raises RankError with the code and the words of what ended it."""
    if team[0].rank == 0:
        STATUS.stopping = "reported by rank 0"  # which knows in what phase
    with TemporaryDirectory(prefix="inat-job-") as folder:
        words = {rank.rank: Path(folder) / f"{rank.rank}.json" for rank in team}
        several = team[0].local_world_size < team[0].world_size
        with ranks.reserve_port(team) as bound:
            processes = {rank.rank: ranks.start_process(rank, words[rank.rank], several) for rank in bound}
        try:
            ends = _ends(processes, grace_s, stop)
        finally:
            for process in processes.values():
                process.kill()
        rank, code = job_exit(ends)
        said = _read(words[rank])
        STATUS.stored_step, STATUS.checkpoint = said.get("step"), said.get("checkpoint")
        if code:
            error = RankError(_sentence(said, next(end for end in ends if end.rank == rank)), code)
            if several and team[0].rank and not said:
                _tell(team[0], error, stop)
            raise error
        STATUS.outcome = said.get("reason", "Done.")


def _tell(rank: Rank, error: RankError, stop: StopFlag) -> None:
    """Have rank 0's machine hear of a rank that was killed, and may be waited for."""
    from inat_job.distributed.rendezvous import report_failure  # seconds, for torch

    report_failure(rank, error, stop)


def job_exit(ends: Sequence[RankExit]) -> tuple[int, int]:
    """The rank that speaks for all, and the exit code of the job, given all ends in their order.

    Rank 0's success is the run's. Else the first that failed unasked is the cause, and where none did, the run was
    stopped: of that rank 0 knows most.
    """
    leader = next((end for end in ends if end.rank == 0), None)
    if leader and leader.code == 0:
        return 0, 0
    for end in ends:
        if end.code and not end.asked and end.code != Preempted.exit_code:
            return end.rank, end.code if end.code > 0 else TransientError.exit_code
    speaker = leader or next((end for end in ends if end.code), ends[0])
    return speaker.rank, speaker.code if speaker.code >= 0 else Preempted.exit_code


def _ends(processes: Mapping[int, Process], grace_s: float, stop: StopFlag) -> list[RankExit]:
    """Wait for all ranks, and see that they end once one of them has failed, the run is done, or the job is stopped."""
    ends: list[RankExit] = []
    asked, until = False, float("inf")
    while len(ends) < len(processes):
        ends += _ended(processes, {end.rank for end in ends}, asked)
        if stop():
            until = min(until, time.monotonic() + stop.seconds_left(grace_s) - _RESERVES * reserve_s(grace_s))
        elif any(end.rank == 0 and end.code == 0 for end in ends):
            until = min(until, time.monotonic() + _LEADER_GONE_S)
        failed = any(end.code not in (0, Preempted.exit_code) for end in ends)
        if not asked and (stop() or any(end.code for end in ends)):  # one that was stopped alone is waited for in vain
            asked = True
            until = min(until, time.monotonic() + (min(grace_s, LOST_S) if failed else stop.seconds_left(grace_s)))
            _signal(processes, ends, signal.SIGINT if stop.why == signal.SIGINT.name else signal.SIGTERM)
        if time.monotonic() > until:
            _signal(processes, ends, signal.SIGKILL)
        time.sleep(_TICK_S)
    return ends


def _ended(processes: Mapping[int, Process], known: set[int], asked: bool) -> list[RankExit]:
    """Those that ended since; of several, whoever says that another was lost is not the cause."""
    found = [
        RankExit(rank, code, asked)
        for rank, process in processes.items()
        if rank not in known and (code := process.poll()) is not None
    ]
    return sorted(found, key=lambda end: end.code == TransientError.exit_code)


def _signal(processes: Mapping[int, Process], ends: Sequence[RankExit], number: signal.Signals) -> None:
    for rank in processes.keys() - {end.rank for end in ends}:
        processes[rank].send_signal(number)


def _sentence(said: Mapping[str, object], end: RankExit) -> str:
    if said.get("reason"):
        return str(said["reason"])
    how = f"killed by {signal.Signals(-end.code).name}" if end.code < 0 else f"ended with code {end.code}"
    return f"Rank {end.rank} was {how} before it could say why: run the same command again."


def _read(path: Path) -> dict[str, Any]:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}
