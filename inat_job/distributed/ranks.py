"""The ranks of a run: which one this process is, and how a machine starts its own.

Everything is passed in torchrun's environment variables, so a process does not depend on whether torchrun or this job
started it: https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from inat_job.distributed import network
from inat_job.errors import ConflictError
from inat_job.platforms.platform import read_int

DEFAULT_PORT = 29500
"""torchrun's default port of the rendezvous store of several machines, where MASTER_PORT is not set."""

_LAUNCHER, _MESSAGE_FILE = "INAT_JOB_LAUNCHER", "INAT_JOB_RANK_MESSAGE"
CALLER = "INAT_JOB_CALLER"
"""The variable with the id of the process that runs this job for Python code, see library.py."""

_LISTEN_FD = "INAT_JOB_MASTER_LISTEN_FD"
_PR_SET_PDEATHSIG = 1
"""Option of prctl(2): the signal that this process receives when its parent dies."""


@dataclass(frozen=True)
class Rank:
    """One process of a run: its rank in the world, its rank on its machine, and where rank 0 is.

    The rendezvous store of rank 0 is at `master_address`, `master_port`. `agent_store` says that torchrun's agent
    already hosts it there; `master_listen_fd` is the file descriptor of a socket that reserves the port for it.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1
    master_address: str = "127.0.0.1"
    master_port: int = 0
    agent_store: bool = False
    master_listen_fd: int | None = None

    @property
    def node_rank(self) -> int:
        """The machine's number, from 0."""
        return self.rank // self.local_world_size

    def variables(self) -> dict[str, str]:
        """The environment variables that torchrun would set for this rank."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.local_world_size),
            "GROUP_RANK": str(self.node_rank),
            "MASTER_ADDR": self.master_address,
            "MASTER_PORT": str(self.master_port),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            _LISTEN_FD: "" if self.master_listen_fd is None else str(self.master_listen_fd),
        }


SINGLE_RANK = Rank()
"""The only rank of a run on one device."""


def from_environment(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """This process's rank, or None before the ranks are started.

    Raises ConflictError for variables that are missing or contradict each other.
    """
    local_rank = read_int(environment, "LOCAL_RANK")
    if local_rank is None:
        return None
    found = {name: read_int(environment, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")}
    missing = [name for name, value in found.items() if value is None]
    if missing or not environment.get("MASTER_ADDR"):
        raise ConflictError(
            f"LOCAL_RANK is {local_rank} but {', '.join(missing) or 'MASTER_ADDR'} is not set: start the ranks with "
            "torchrun, or unset LOCAL_RANK and let --devices start them."
        )
    number, world_size, local_world_size, port = (value or 0 for value in found.values())
    rank = Rank(
        number,
        world_size,
        local_rank,
        local_world_size,
        master_address=environment["MASTER_ADDR"],
        master_port=port,
        agent_store=environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
        master_listen_fd=read_int(environment, _LISTEN_FD),
    )
    _check(rank)
    return rank


def _check(rank: Rank) -> None:
    is_local = rank.local_rank < rank.local_world_size <= rank.world_size
    if not (rank.rank < rank.world_size and is_local and rank.rank % rank.local_world_size == rank.local_rank):
        raise ConflictError(
            f"RANK {rank.rank} of WORLD_SIZE {rank.world_size} and LOCAL_RANK {rank.local_rank} of LOCAL_WORLD_SIZE "
            f"{rank.local_world_size} contradict each other: give every machine the same number of ranks."
        )


def gpu_index(rank: Rank, visible: int) -> int:
    """The number of a rank's GPU among the `visible` ones. A single one is its own, whatever its local rank.

    Raises ConflictError.
    """
    if visible != 1 and rank.local_rank >= visible:
        raise ConflictError(
            f"LOCAL_RANK is {rank.local_rank}, but this process sees {visible} GPUs: start fewer ranks, or set "
            "CUDA_VISIBLE_DEVICES to one GPU for each rank, or to all for all."
        )
    return 0 if visible == 1 else rank.local_rank


def on_node(
    num_nodes: int,
    node_rank: int,
    local_world_size: int,
    master_address: str | None,
    environment: Mapping[str, str] = os.environ,
) -> list[Rank]:
    """The ranks that machine `node_rank` of `num_nodes` starts.

    Several machines use a known port; a single one gets port 0, which `reserve_port` replaces by a free one.
    """
    address, port = SINGLE_RANK.master_address, 0
    if num_nodes > 1:
        address = master_address or ""
        port = read_int(environment, "MASTER_PORT") or read_int(environment, "PET_MASTER_PORT") or DEFAULT_PORT
    first, world_size = node_rank * local_world_size, num_nodes * local_world_size
    return [
        Rank(first + local_rank, world_size, local_rank, local_world_size, address, port)
        for local_rank in range(local_world_size)
    ]


@contextmanager
def reserve_port(ranks: Sequence[Rank]) -> Iterator[list[Rank]]:
    """The ranks of a machine, with a free port of the loopback interface unless they have a known one.

    Start the ranks inside the block. Rank 0 inherits the socket that reserves the port, because it may take minutes
    before it listens there.
    """
    if ranks[0].master_port:
        yield list(ranks)
        return
    with socket.socket() as reserved:
        reserved.bind((SINGLE_RANK.master_address, 0))
        port, fd = int(reserved.getsockname()[1]), reserved.fileno()
        yield [replace(rank, master_port=port, master_listen_fd=None if rank.rank else fd) for rank in ranks]


def start_process(
    rank: Rank, message_path: Path, multi_node: bool, environment: Mapping[str, str] = os.environ
) -> subprocess.Popen[bytes]:
    """Start the current command again as a rank, which writes its termination message to `message_path`.

    The process gets its own session: Ctrl-C in a terminal reaches only the launcher, which forwards it once.
    """
    variables = {**environment, **rank.variables(), _LAUNCHER: str(os.getpid()), _MESSAGE_FILE: str(message_path)}
    interface = network.interface_to(rank.master_address) if multi_node else network.LOOPBACK
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface else ():
        variables.setdefault(name, interface)
    return subprocess.Popen(  # noqa: S603
        [sys.executable, *sys.argv],
        env=variables,
        start_new_session=True,
        pass_fds=() if rank.master_listen_fd is None else (rank.master_listen_fd,),
    )


def end_with_launcher(environment: Mapping[str, str] = os.environ) -> bool:
    """In a rank that the job itself started, have the kernel kill this process when its launcher dies.

    A job for Python code is stopped instead, when its caller dies, and stores a checkpoint. Returns whether this
    process is such a rank.
    """
    launcher, caller = read_int(environment, _LAUNCHER), read_int(environment, CALLER)
    parent = caller if launcher is None else launcher
    if parent is not None and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM if launcher is None else signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)
    return launcher is not None


def message_file(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where a rank writes its termination message for its launcher; None in any other process."""
    return Path(environment[_MESSAGE_FILE]) if environment.get(_MESSAGE_FILE) else None


def has_caller(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether Python code runs this job, and draws its progress from the log."""
    return bool(environment.get(CALLER))
