"""What a rank meets when another one is lost, as one of our errors; and how it learns why the other one ended."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from inat_job.errors import JobError, Preempted, RankError, TransientError
from inat_job.host import device_faults
from inat_job.signals import Stop
from inat_job.storage.threads import within

_NETWORK_ERRORS = ("gloo", "NCCL", "Application timeout caused pair closure")
"""Texts in RuntimeErrors of the network; gloo's name their source file, except for the last one here."""

_KEY = "cause"
_PATIENCE_S = 3.0
"""Seconds for the store to answer: a request over a cut connection never returns."""

_NO_ANSWER = (RuntimeError, TimeoutError)
"""What asking the store raises where rank 0 or the network is gone; torch's errors are RuntimeErrors."""


class FailureCause:
    """The error of the first rank that failed, kept in the store: ranks on other machines have no other way to know."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    def record(self, error: JobError) -> None:
        """Record an error, unless one is recorded already."""
        if store := self._store:
            text = json.dumps([str(error), error.exit_code])
            with contextlib.suppress(*_NO_ANSWER):
                within(_PATIENCE_S, lambda: store.compare_set(_KEY, "", text), "cause")

    def read(self) -> JobError | None:
        """The recorded error. Raises torch's errors where the store is gone."""
        if not self._store or not self._store.check([_KEY]):
            return None
        message, code = json.loads(self._store.get(_KEY))
        return Preempted(message) if code == Preempted.exit_code else RankError(message, code)

    def read_in_time(self) -> JobError | None:
        """The recorded error, or None where the store does not answer: rank 0 or the network may be gone."""
        with contextlib.suppress(*_NO_ANSWER):
            return within(_PATIENCE_S, self.read, "cause")
        return None


@contextmanager
def lost_rank_errors(stop: Stop, cause: Callable[[], JobError | None] = lambda: None) -> Iterator[None]:
    """Translate the errors of torch.distributed and the network.

    Raises Preempted where this rank was stopped anyway, else the recorded `cause`, else TransientError. A fault of this
    rank's own device passes unchanged.
    """
    try:
        yield
    except JobError:
        raise
    except RuntimeError as error:
        if device_faults.fault_of(error):
            raise
        if not isinstance(error, dist.DistError) and not any(text in str(error) for text in _NETWORK_ERRORS):
            raise
        if stop():
            raise Preempted(
                "Preempted while another rank had ended: run the same command again to continue."
            ) from error
        if recorded := cause():
            raise recorded from error
        detail = re.sub(r"^\[.*?\] ", "", str(error).splitlines()[0]).split(". ")[0][:200]
        raise TransientError(f"Another rank of this run was lost ({detail}): run the same command again.") from error
