"""How the ranks of a run find each other: through a store that rank 0 hosts, at the address that the platform gives."""

import socket
import time
from collections.abc import Callable
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore

from inat_job import events, signals
from inat_job.distributed.failures import FailureCause
from inat_job.distributed.process_group import COLLECTIVE_TIMEOUT_S, RENDEZVOUS_TIMEOUT_S, SINGLE_PROCESS, ProcessGroup
from inat_job.distributed.ranks import Rank
from inat_job.errors import ConflictError, JobError, TransientError
from inat_job.signals import StopFlag

_POLL_S = 0.1
_CONNECT_TIMEOUT_S = 5.0
_REPORT_TIMEOUT_S = 30.0


def join(rank: Rank, stop: StopFlag, is_finished: Callable[[], bool] = lambda: False) -> ProcessGroup | None:
    """The process group of a run, once rank 0 is found.

    Returns None where `is_finished` turns true first: the run was finished without this rank. Raises TransientError
    when rank 0 is not found in time or cannot reach its own store; ConflictError where its port is taken, or where it
    counts other ranks; Preempted.
    """
    if rank.world_size == 1:
        return SINGLE_PROCESS
    hosts, began = rank.rank == 0 and not rank.agent_store, time.monotonic()
    while True:
        signals.check(stop, "looking for rank 0")
        if store := _connect(rank, hosts):
            return _group(rank, store, stop)
        if rank.rank and is_finished():  # rank 0 is not waited for: it has asked before it took the run
            return None
        if time.monotonic() - began > RENDEZVOUS_TIMEOUT_S:
            raise TransientError(f"Rank 0 was not found at {rank.master_address} port {rank.master_port}: try again.")


def report_failure(rank: Rank, error: JobError, stop: StopFlag) -> None:
    """Tell the ranks of other machines why this machine's ranks ended, for one that was killed and could not.

    Rank 0 may have no store yet; gives up where it has none in time.
    """
    began = time.monotonic()
    while not stop() and time.monotonic() - began < _REPORT_TIMEOUT_S:
        if store := _connect(rank, hosts=False):
            FailureCause(store).record(error)
            return


def _group(rank: Rank, store: TCPStore, stop: StopFlag) -> ProcessGroup:
    store.set_timeout(timedelta(seconds=COLLECTIVE_TIMEOUT_S))
    group = ProcessGroup(rank, store, stop)
    size = group.broadcast(rank.world_size)
    if size != rank.world_size:
        raise ConflictError(
            f"Rank 0 counts {size} ranks and this machine {rank.world_size}: give all machines the same devices."
        )
    events.emit("ranks", rank=rank.rank, size=rank.world_size, here=rank.local_world_size)
    return group


def _connect(rank: Rank, hosts: bool) -> TCPStore | None:
    """Rank 0's store, hosted by this process if `hosts`; None where it cannot be reached yet."""
    try:
        if not hosts:  # tried here first, since torch logs each attempt that fails
            socket.create_connection((rank.master_address, rank.master_port), _CONNECT_TIMEOUT_S).close()
        socket.getaddrinfo(
            rank.master_address, rank.master_port
        )  # the name of a pod that does not exist yet does not resolve
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
    except OSError:
        time.sleep(_POLL_S)
        return None
    except (dist.DistError, RuntimeError) as error:
        if not hosts:
            return None
        if "in use" in str(error):
            raise ConflictError(
                f"Port {rank.master_port}, where the ranks find each other, is taken: set MASTER_PORT to another."
            ) from error
        raise TransientError(
            f"Rank 0 cannot reach its own store at {rank.master_address} port {rank.master_port}: check that the name "
            "and the network are this machine's, and try again."
        ) from error
