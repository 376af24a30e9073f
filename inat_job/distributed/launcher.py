"""The launcher process: starts a machine's ranks, forwards signals to them, and ends with the exit code of the run.

The launcher is not a rank itself, so the end of one rank never interrupts the upload of another.
docs/decisions/0013.
"""

import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from inat_job.distributed import ranks
from inat_job.distributed.ranks import Rank
from inat_job.errors import Preempted, RankError, TransientError
from inat_job.job_status import STATUS
from inat_job.signals import StopFlag, reserve_s
from inat_job.storage.disk import read_json_object

FAILURE_GRACE_S = 25.0
"""Seconds that the other ranks get to store their checkpoint once one rank has failed."""

_FINISH_GRACE_S = 15.0
"""Seconds that the other ranks get once rank 0 has finished the run."""

_RESERVES = 1.5
"""Multiple of signals.reserve_s: a hung rank ends itself at 2, this process ends at 1."""

_POLL_S = 0.05

Process = subprocess.Popen[bytes]


@dataclass(frozen=True)
class RankExit:
    """How a rank ended: its exit code, negative for a signal's number, and whether the launcher had signalled it."""

    rank: int
    code: int
    signalled: bool


def launch(local_ranks: Sequence[Rank], grace_s: float, stop: StopFlag) -> None:
    """Run the job in the ranks of this machine. Raises RankError with the exit code and the message of its cause."""
    if local_ranks[0].rank == 0:
        STATUS.stopping = "reported by rank 0"  # which knows the phase
    with TemporaryDirectory(prefix="inat-job-") as folder:
        message_files = {rank.rank: Path(folder) / f"{rank.rank}.json" for rank in local_ranks}
        multi_node = local_ranks[0].local_world_size < local_ranks[0].world_size
        with ranks.reserve_port(local_ranks) as started:
            processes = {rank.rank: ranks.start_process(rank, message_files[rank.rank], multi_node) for rank in started}
        try:
            exits = _wait(processes, grace_s, stop)
        finally:
            for process in processes.values():
                process.kill()
        rank, code = job_exit(exits)
        message = read_json_object(message_files[rank])  # empty if it wrote none
        STATUS.stored_step, STATUS.checkpoint = message.get("step"), message.get("checkpoint")
        if code:
            error = RankError(_reason(message, next(end for end in exits if end.rank == rank)), code)
            if multi_node and local_ranks[0].rank and not message:
                _report_to_rank_0(local_ranks[0], error, stop)
            raise error
        STATUS.outcome = message.get("reason", "Done.")


def _report_to_rank_0(rank: Rank, error: RankError, stop: StopFlag) -> None:
    """Report a killed rank to rank 0's machine, which may be waiting for it."""
    from inat_job.distributed.rendezvous import report_failure  # imports torch, which takes seconds

    report_failure(rank, error, stop)


def job_exit(exits: Sequence[RankExit]) -> tuple[int, int]:
    """The rank that decided how the job ended, and the job's exit code, given the ranks' exits in order.

    If rank 0 succeeds, the run has succeeded. Otherwise the first rank that failed without a signal from the launcher
    is the cause. If there is none, the run was stopped, and rank 0 knows most about that.
    """
    leader = next((end for end in exits if end.rank == 0), None)
    if leader and leader.code == 0:
        return 0, 0
    for end in exits:
        if end.code and not end.signalled and end.code != Preempted.exit_code:
            return end.rank, end.code if end.code > 0 else TransientError.exit_code
    decisive = leader or next((end for end in exits if end.code), exits[0])
    return decisive.rank, decisive.code if decisive.code >= 0 else Preempted.exit_code


def _wait(processes: Mapping[int, Process], grace_s: float, stop: StopFlag) -> list[RankExit]:
    """Wait for all ranks. Once one has failed, the run is finished, or the job is stopped, end the others in time."""
    exits: list[RankExit] = []
    signalled, deadline = False, float("inf")
    while len(exits) < len(processes):
        exits += _new_exits(processes, {end.rank for end in exits}, signalled)
        if stop():
            left_s = stop.seconds_left(grace_s) - _RESERVES * reserve_s(grace_s)
            deadline = min(deadline, time.monotonic() + left_s)
        elif any(end.rank == 0 and end.code == 0 for end in exits):
            deadline = min(deadline, time.monotonic() + _FINISH_GRACE_S)
        failed = any(end.code not in (0, Preempted.exit_code) for end in exits)
        if not signalled and (stop() or any(end.code for end in exits)):  # the others would wait in vain
            signalled = True
            grace = min(grace_s, FAILURE_GRACE_S) if failed else stop.seconds_left(grace_s)
            deadline = min(deadline, time.monotonic() + grace)
            _signal(processes, exits, signal.SIGINT if stop.why == signal.SIGINT.name else signal.SIGTERM)
        if time.monotonic() > deadline:
            _signal(processes, exits, signal.SIGKILL)
        time.sleep(_POLL_S)
    return exits


def _new_exits(processes: Mapping[int, Process], known: set[int], signalled: bool) -> list[RankExit]:
    """The ranks that have ended since. A rank that reports the loss of another comes last: it is not the cause."""
    exits = [
        RankExit(rank, code, signalled)
        for rank, process in processes.items()
        if rank not in known and (code := process.poll()) is not None
    ]
    return sorted(exits, key=lambda end: end.code == TransientError.exit_code)


def _signal(processes: Mapping[int, Process], exits: Sequence[RankExit], number: signal.Signals) -> None:
    for rank in processes.keys() - {end.rank for end in exits}:
        processes[rank].send_signal(number)


def _reason(message: Mapping[str, object], end: RankExit) -> str:
    if message.get("reason"):
        return str(message["reason"])
    how = f"was killed by {signal.Signals(-end.code).name}" if end.code < 0 else f"ended with code {end.code}"
    return f"Rank {end.rank} {how} before it could report why: run the same command again."
