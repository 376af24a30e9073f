"""What a rank meets when another one is lost, as one of our errors."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from inat_job.errors import JobError, Preempted, TransientError
from inat_job.signals import Stop

_OF_THE_NETWORK = ("gloo", "NCCL", "Connection closed by peer", "Timed out waiting")
"""In the texts of RuntimeErrors, which is all that gloo raises."""


@contextmanager
def lost(stop: Stop) -> Iterator[None]:
    """Raises TransientError for a rank that does not answer, or Preempted where this one was stopped anyway."""
    try:
        yield
    except JobError:
        raise
    except (dist.DistError, RuntimeError) as error:
        if not isinstance(error, dist.DistError) and not any(word in str(error) for word in _OF_THE_NETWORK):
            raise
        if stop():
            raise Preempted("Preempted while another rank had ended: run the same command again to go on.") from error
        detail = str(error).splitlines()[0][-200:]
        raise TransientError(f"Another rank of this run was lost ({detail}): run the same command again.") from error
