"""A wait for other ranks: a phase of its own, a line every 30 s that says who is missing, and a limit."""

import time
from collections.abc import Callable, Sequence
from itertools import groupby
from types import TracebackType
from typing import Self

from inat_job import events
from inat_job.distributed.ranks import Rank
from inat_job.job_status import STATUS

REPORT_EVERY_S = 30.0
"""Seconds between two lines about whom this machine waits for."""

LIMIT_S = 3600.0
"""The default of --rendezvous-minutes in seconds."""

PHASE = "rendezvous"
_MOST_NAMED = 5


class PeerWait:
    """One wait of at most `limit_s` seconds.

    The job counts as alive meanwhile: the limit ends a wait that is in vain, and it may be longer than the liveness
    check allows. The first rank of each machine reports, as a warning, since the others log nothing else.
    """

    def __init__(self, rank: Rank, limit_s: float = LIMIT_S) -> None:
        self._rank, self._limit_s = rank, limit_s
        self._began = self._said_at = time.monotonic()
        self._phase: str | None = None
        self.address = f"{rank.master_address} port {rank.master_port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._phase and error is None:  # an error is of the phase in which it was raised
            STATUS.phase = self._phase

    @property
    def is_over(self) -> bool:
        """Whether the limit has passed."""
        return time.monotonic() - self._began > self._limit_s

    @property
    def limit(self) -> str:
        """The limit for people."""
        return f"{self._limit_s / 60:.2g} minutes" if self._limit_s < 600 else f"{self._limit_s / 60:.0f} minutes"

    def report(self, missing: Callable[[], str]) -> None:
        """Note that the wait goes on; `missing` says for whom, and is asked only if that is to be logged."""
        now = time.monotonic()
        if STATUS.phase != PHASE:
            self._phase = STATUS.phase
            events.phase(PHASE)
        if now - self._said_at >= REPORT_EVERY_S and self._rank.local_rank == 0:
            self._said_at = now
            events.warn(f"{missing()}: waiting since {now - self._began:.0f} s, for at most {self.limit}.")


def named_by_machine(missing: Sequence[int], local_world_size: int) -> str:
    """Rank numbers, sorted, with the machines that they belong to."""
    machines = [(node, [*of_node]) for node, of_node in groupby(missing, lambda rank: rank // local_world_size)]
    named = ", ".join(f"machine {node} ({_listed(numbers)})" for node, numbers in machines[:_MOST_NAMED])
    more = len(machines) - _MOST_NAMED
    return named if more <= 0 else f"{named} and {more} more machines"


def _listed(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"ranks {numbers[0]} to {numbers[-1]}"
    return f"ranks {', '.join(map(str, numbers))}"
