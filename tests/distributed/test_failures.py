"""What a rank meets when another one is lost."""

import pytest
import torch.distributed as dist

from inat_job.distributed.failures import lost
from inat_job.errors import JobError, Preempted, TransientError
from inat_job.signals import StopFlag

OF_A_LOST_RANK = [
    RuntimeError("[/src/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer [10.0.0.2]:3981"),
    RuntimeError(
        "[/src/third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 180000ms for recv operation "
        "to complete"
    ),
    RuntimeError("Application timeout caused pair closure"),  # of what waits beside the one that timed out
    RuntimeError("NCCL communicator was aborted on rank 0."),
    dist.DistNetworkError("failed to recv, got 0 bytes"),
    dist.DistStoreError("wait timeout after 180000ms, keys: /told/3"),
]


@pytest.mark.parametrize("error", OF_A_LOST_RANK, ids=str)
def test_it_is_tried_again(error: Exception) -> None:
    with pytest.raises(TransientError, match=r"^Another rank of this run was lost \("), lost(StopFlag()):
        raise error


def test_the_sentence_quotes_what_helps() -> None:
    source = "[/src/third_party/gloo/gloo/transport/tcp/pair.cc:561] "
    advice = ". This is typically caused by a remote worker crashing. GLHF!"
    with pytest.raises(TransientError) as raised, lost(StopFlag()):
        raise RuntimeError(f"{source}Connection closed by peer [10.0.0.2]:3981{advice}\nException raised from wait")
    assert "lost (Connection closed by peer [10.0.0.2]:3981): run" in str(raised.value)


@pytest.mark.parametrize("error", OF_A_LOST_RANK, ids=str)
def test_who_was_stopped_as_well_is_preempted(error: Exception) -> None:
    stop = StopFlag()
    stop.set("SIGTERM")
    with pytest.raises(Preempted), lost(stop):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shape '[2]' is invalid"), ValueError("gloo"), JobError("NCCL")])
def test_other_errors_are_left_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, lost(StopFlag()):
        raise error
    assert raised.value is error
