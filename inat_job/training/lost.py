"""What a rank meets when another one is lost, as one of our errors."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from inat_job.errors import JobError, Preempted, TransientError
from inat_job.signals import Stop

_OF_THE_NETWORK = ("gloo", "NCCL", "Application timeout caused pair closure")
"""In the texts of RuntimeErrors, which is all that gloo raises: each with its source file, but for the last."""


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
        detail = re.sub(r"^\[.*?\] ", "", str(error).splitlines()[0]).split(". ")[0][:200]
        raise TransientError(f"Another rank of this run was lost ({detail}): run the same command again.") from error
