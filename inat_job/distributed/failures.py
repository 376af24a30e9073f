"""What a rank meets when another one is lost, as one of our errors, and how it learns why the other has ended."""

import contextlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.distributed_c10d import Store

from inat_job.errors import JobError, Preempted, RankError, TransientError
from inat_job.signals import Stop

_OF_THE_NETWORK = ("gloo", "NCCL", "Application timeout caused pair closure")
"""In the texts of RuntimeErrors; gloo raises no others, each with its source file, but for the last here."""

_KEY = "cause"
_PATIENCE_S = 3.0


class FailureCause:
    """Why the first rank ended that did not end well, left in the store: on another machine nobody else tells it."""

    def __init__(self, store: Store | None) -> None:
        self._store = store

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Within the block, leave word of the error that ends it."""
        try:
            yield
        except JobError as error:
            self.tell(error)
            raise

    def tell(self, error: JobError) -> None:
        """Leave word of an error, unless there is one already."""
        if store := self._store:
            told = json.dumps([str(error), error.exit_code])
            _within_patience(lambda: store.compare_set(_KEY, "", told))

    def read(self) -> JobError | None:
        """What another rank has left there. Raises torch's errors where there is no store any more."""
        if not self._store or not self._store.check([_KEY]):
            return None
        message, code = json.loads(self._store.get(_KEY))
        return Preempted(message) if code == Preempted.exit_code else RankError(message, code)

    def soon(self) -> JobError | None:
        """The same, and None where the store does not answer: rank 0 may be gone, or the line be cut."""
        found: list[JobError | None] = []
        _within_patience(lambda: found.append(self.read()))
        return found[0] if found else None


@contextmanager
def lost(stop: Stop, cause: Callable[[], JobError | None] = lambda: None) -> Iterator[None]:
    """Raises, for a rank that does not answer, Preempted where this one was stopped anyway, else the `cause` that the
    other has left, or TransientError."""
    try:
        yield
    except JobError:
        raise
    except (dist.DistError, RuntimeError) as error:
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in _OF_THE_NETWORK):
            raise
        if stop():
            raise Preempted("Preempted while another rank had ended: run the same command again to go on.") from error
        if told := cause():
            raise told from error
        detail = re.sub(r"^\[.*?\] ", "", str(error).splitlines()[0]).split(". ")[0][:200]
        raise TransientError(f"Another rank of this run was lost ({detail}): run the same command again.") from error


def _within_patience(ask: Callable[[], object]) -> None:
    """Ask the store in a thread, since a request over a line that is cut never ends; an error is no answer."""

    def work() -> None:
        with contextlib.suppress(dist.DistError, RuntimeError):
            ask()

    thread = threading.Thread(target=work, name="cause", daemon=True)
    thread.start()
    thread.join(_PATIENCE_S)
