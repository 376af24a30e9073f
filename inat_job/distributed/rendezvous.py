"""How the ranks of a run find each other: by a store that rank 0 keeps, at an address that its platform tells all."""

import socket
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from inat_job import events, signals
from inat_job.distributed.failures import FailureCause
from inat_job.distributed.process_group import LOST_S, RENDEZVOUS_TIMEOUT_S, ProcessGroup
from inat_job.distributed.ranks import Rank
from inat_job.errors import ConflictError, JobError, TransientError
from inat_job.signals import StopFlag

_TICK_S = 0.1
_TRY_S = 5.0
_WORD_S = 30.0


def join(rank: Rank, stop: StopFlag, over: Callable[[], bool] = lambda: False) -> ProcessGroup | None:
    """Find the other ranks of a run, of which rank 0 keeps the store.

    Returns None where `over` turns true meanwhile: the run was finished without this rank. Raises TransientError when
    rank 0 is not found in time or does not reach its own store, ConflictError where its port is taken or it counts
    other ranks, Preempted.
    """
    keeps, begun = rank.rank == 0 and not rank.agent_store, time.monotonic()
    while True:
        signals.check(stop, "looking for rank 0")
        store = _store(rank, keeps)
        if store:
            store.set_timeout(timedelta(seconds=LOST_S))
            group = ProcessGroup(rank, store, stop)
            size = group.broadcast(rank.world_size)
            if size != rank.world_size:
                raise ConflictError(
                    f"Rank 0 counts {size} ranks and this machine {rank.world_size}: give all the same devices."
                )
            events.emit("ranks", rank=rank.rank, size=rank.world_size, here=rank.local_world_size)
            return group
        if over():
            return None
        if time.monotonic() - begun > RENDEZVOUS_TIMEOUT_S:
            raise TransientError(f"Rank 0 is not found at {rank.master_address} port {rank.master_port}: try again.")


def report_failure(rank: Rank, error: JobError, stop: StopFlag) -> None:
    """Tell the ranks of other machines why those of this machine have ended: for one that was killed, and could not.

    Rank 0 may have no store yet; it is given up where it has none in time.
    """
    begun = time.monotonic()
    while not stop() and time.monotonic() - begun < _WORD_S:
        if store := _store(rank, keeps=False):
            FailureCause(store).tell(error)
            return


def _store(rank: Rank, keeps: bool) -> TCPStore | None:
    try:
        if not keeps:  # looked for here, since torch tells of each time that it does not find it
            socket.create_connection((rank.master_address, rank.master_port), _TRY_S).close()
        socket.getaddrinfo(rank.master_address, rank.master_port)  # fails while rank 0's pod has no name yet
        return TCPStore(
            rank.master_address,
            rank.master_port,
            None,
            keeps,
            timedelta(seconds=_TRY_S),
            wait_for_workers=False,
            multi_tenant=rank.agent_store,
            master_listen_fd=rank.master_listen_fd if keeps else None,
        )
    except OSError:
        time.sleep(_TICK_S)
        return None
    except (dist.DistError, RuntimeError) as error:
        if keeps and "in use" not in str(error):
            raise TransientError(
                f"Rank 0 does not reach its own store at {rank.master_address} port {rank.master_port}: see that the "
                "name and the network are this machine's, and try again."
            ) from error
        if keeps:
            raise ConflictError(
                f"Port {rank.master_port} is taken, by which the ranks find each other: set MASTER_PORT to another."
            ) from error
        return None
