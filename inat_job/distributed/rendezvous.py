"""How the ranks of a run find each other: through a store that rank 0 hosts, at the address that the platform gives."""

import time
from collections.abc import Callable
from datetime import timedelta

from torch._C._distributed_c10d import TCPStore

from inat_job import events, signals
from inat_job.distributed import network
from inat_job.distributed.failures import FailureCause
from inat_job.distributed.peer_wait import LIMIT_S, PeerWait
from inat_job.distributed.process_group import COLLECTIVE_TIMEOUT_S, SINGLE_PROCESS, ProcessGroup
from inat_job.distributed.ranks import Rank
from inat_job.errors import ConflictError, JobError, TransientError
from inat_job.signals import StopFlag
from inat_job.storage.threads import run_in_thread

_LOOKING = "looking for rank 0"
_POLL_S = 0.1
_ASK_EVERY_S = 2.0
_CONNECT_TIMEOUT_S = 5.0
_REPORT_TIMEOUT_S = 30.0


def join(
    rank: Rank, stop: StopFlag, is_finished: Callable[[], bool] = lambda: False, limit_s: float = LIMIT_S
) -> ProcessGroup | None:
    """The process group of a run, once rank 0 is found.

    Returns None where `is_finished` turns true first: the run was finished without this rank. Raises TransientError
    when rank 0 is not found within `limit_s` or cannot reach its own store; ConflictError where its port is taken, or
    where it counts other ranks; Preempted.
    """
    if rank.world_size == 1:
        return SINGLE_PROCESS
    hosts, asked_at = rank.rank == 0 and not rank.agent_store, 0.0
    with PeerWait(rank, limit_s) as wait:
        while isinstance(store := _connect_or_stop(rank, hosts, stop), str):
            why = store
            # Rank 0 does not ask: it has asked before it took the run.
            if rank.rank and time.monotonic() - asked_at > _ASK_EVERY_S:
                if is_finished():
                    return None
                asked_at = time.monotonic()
            if wait.is_over:
                raise TransientError(
                    f"Rank 0 was not found at {wait.address} within {wait.limit} ({why}): check that its machine runs "
                    "and can be reached, raise --rendezvous-minutes, or try again."
                )
            wait.report(lambda: f"Rank 0 is not reached at {wait.address} ({why})")  # noqa: B023
            signals.pause(_POLL_S, stop, _LOOKING)
    return _group(rank, store, stop, limit_s)


def report_failure(rank: Rank, error: JobError, stop: StopFlag) -> None:
    """Tell the ranks of other machines why this machine's ranks ended, for one that was killed and could not.

    Rank 0 may have no store yet; gives up where it has none in time.
    """
    began = time.monotonic()
    while not stop() and time.monotonic() - began < _REPORT_TIMEOUT_S:
        if not isinstance(store := _connect(rank, hosts=False), str):
            FailureCause(store).record(error)
            return
        time.sleep(_POLL_S)


def _group(rank: Rank, store: TCPStore, stop: StopFlag, limit_s: float) -> ProcessGroup:
    store.set_timeout(timedelta(seconds=COLLECTIVE_TIMEOUT_S))
    group = ProcessGroup(rank, store, stop, limit_s)
    group.wait_for_rank_0()
    size = group.broadcast(rank.world_size)
    if size != rank.world_size:
        raise ConflictError(
            f"Rank 0 counts {size} ranks and this machine {rank.world_size}: give all machines the same devices."
        )
    events.emit("ranks", rank=rank.rank, size=rank.world_size, here=rank.local_world_size)
    return group


def _connect_or_stop(rank: Rank, hosts: bool, stop: StopFlag) -> TCPStore | str:
    """`_connect` in a thread: neither a name server nor a silent machine keeps this rank from the stop flag."""
    return run_in_thread(lambda _: _connect(rank, hosts), lambda: signals.check(stop, _LOOKING), join_s=0.0)


def _connect(rank: Rank, hosts: bool) -> TCPStore | str:
    """Rank 0's store, hosted by this process if `hosts`; or why it cannot be reached yet."""
    # Tried here first, since torch logs each attempt that fails.
    if why := network.why_unreachable(rank.master_address, rank.master_port, connect=not hosts):
        return why
    try:
        return TCPStore(
            rank.master_address,
            rank.master_port,
            None,
            hosts,
            timedelta(seconds=_CONNECT_TIMEOUT_S),
            wait_for_workers=False,
            multi_tenant=rank.agent_store,
            master_listen_fd=rank.master_listen_fd if hosts else None,
        )
    except (OSError, RuntimeError) as error:
        if not hosts:
            return "something listens there, but does not answer like rank 0"
        if "in use" in str(error):
            raise ConflictError(
                f"Port {rank.master_port}, where the ranks find each other, is taken: set MASTER_PORT to another."
            ) from error
        raise TransientError(
            f"Rank 0 cannot reach its own store at {rank.master_address} port {rank.master_port}: check that the name "
            "and the network are this machine's, and try again."
        ) from error
