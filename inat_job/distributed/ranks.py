"""The processes that work on one run: which of them this is, and how a machine starts its own.

They are told by torchrun's variables (https://docs.pytorch.org/docs/stable/elastic/run.html#environment-variables), so
that a process does not care whether this job started it or torchrun did.
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
from inat_job.platforms.platform import whole

PORT = 29500
"""torchrun's own, for the store of several machines where MASTER_PORT names no other."""

_SUPERVISOR, _WORDS, _BOUND = "INAT_JOB_SUPERVISOR", "INAT_JOB_LAST_WORDS", "INAT_JOB_BOUND"
_DIES_WITH_PARENT = 1
"""PR_SET_PDEATHSIG of prctl(2)."""


@dataclass(frozen=True)
class Rank:
    """One process of `size`: number `rank` of all, `local` of the `here` on its machine.

    `master` and `port` are where rank 0 keeps the store that they find each other by; `hosted` is whether torchrun's
    agent has it there already, `bound` the descriptor of a socket that holds the port for it.
    """

    rank: int = 0
    size: int = 1
    local: int = 0
    here: int = 1
    master: str = "127.0.0.1"
    port: int = 0
    hosted: bool = False
    bound: int | None = None

    @property
    def node(self) -> int:
        """The machine's number."""
        return self.rank // self.here

    def variables(self) -> dict[str, str]:
        """As torchrun tells a process."""
        return {
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.size),
            "LOCAL_RANK": str(self.local),
            "LOCAL_WORLD_SIZE": str(self.here),
            "GROUP_RANK": str(self.node),
            "MASTER_ADDR": self.master,
            "MASTER_PORT": str(self.port),
            "TORCH_CPP_LOG_LEVEL": "ERROR",
            _BOUND: "" if self.bound is None else str(self.bound),
        }


ALONE = Rank()
"""The one of a run on one device."""


def own(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """This process's rank, or None where it is none yet. Raises ConflictError for variables that contradict."""
    local = whole(environment, "LOCAL_RANK")
    if local is None:
        return None
    told = {name: whole(environment, name) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT")}
    missing = [name for name, value in told.items() if value is None]
    if missing or not environment.get("MASTER_ADDR"):
        raise ConflictError(
            f"LOCAL_RANK is {local} and {', '.join(missing) or 'MASTER_ADDR'} is not set: start the ranks by torchrun, "
            "or unset it and let --devices start them."
        )
    rank, size, here, port = (value or 0 for value in told.values())
    if not (rank < size and local < here <= size and rank % here == local):
        raise ConflictError(
            f"RANK {rank} of WORLD_SIZE {size} and LOCAL_RANK {local} of LOCAL_WORLD_SIZE {here} contradict each "
            "other: every machine needs as many ranks as the others."
        )
    hosted = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return Rank(rank, size, local, here, environment["MASTER_ADDR"], port, hosted, whole(environment, _BOUND))


def machine(
    nodes: int, node: int, here: int, master: str | None, environment: Mapping[str, str] = os.environ
) -> list[Rank]:
    """The ranks that machine `node` of `nodes` starts: at a known port, or alone at one that `bind` finds."""
    port = whole(environment, "MASTER_PORT") or whole(environment, "PET_MASTER_PORT") or PORT
    where, port = (master or "", port) if nodes > 1 else (ALONE.master, 0)
    return [Rank(node * here + local, nodes * here, local, here, where, port) for local in range(here)]


@contextmanager
def bind(team: Sequence[Rank]) -> Iterator[list[Rank]]:
    """The ranks of a machine, to be started within the block; where they need no known port, with a free one.

    Rank 0 gets the socket that holds it, since it may be minutes until it listens there; only this machine reaches it.
    """
    if team[0].port:
        yield list(team)
        return
    with socket.socket() as holder:
        holder.bind((ALONE.master, 0))
        port = int(holder.getsockname()[1])
        yield [replace(rank, port=port, bound=None if rank.rank else holder.fileno()) for rank in team]


def start(
    rank: Rank, words: Path, several_nodes: bool, environment: Mapping[str, str] = os.environ
) -> subprocess.Popen[bytes]:
    """Start this very command as a rank, which leaves its last words in the file `words`.

    In a session of its own: a terminal's Ctrl-C reaches the supervisor alone, which passes it on once.
    """
    told = {**environment, **rank.variables(), _SUPERVISOR: str(os.getpid()), _WORDS: str(words)}
    interface = network.interface_to(rank.master) if several_nodes else network.LOOPBACK
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if interface else ():
        told.setdefault(name, interface)
    return subprocess.Popen(  # noqa: S603
        [sys.executable, *sys.argv],
        env=told,
        start_new_session=True,
        pass_fds=() if rank.bound is None else (rank.bound,),
    )


def supervised(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a rank that the job itself has started; it then ends with its supervisor."""
    supervisor = whole(environment, _SUPERVISOR)
    if supervisor is None:
        return False
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIES_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != supervisor:  # it died before that
            os._exit(1)
    return True


def words(environment: Mapping[str, str] = os.environ) -> Path | None:
    """Where a rank leaves its last words for its supervisor."""
    return Path(environment[_WORDS]) if environment.get(_WORDS) else None
