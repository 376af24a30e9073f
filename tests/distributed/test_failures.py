"""Errors of torch.distributed and the network, translated into ours."""

import pytest
import torch.distributed as dist

from inat_job.distributed.failures import lost_rank_errors
from inat_job.errors import JobError, Preempted, TransientError
from inat_job.signals import StopFlag

LOST_RANK_ERRORS = [
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


@pytest.mark.parametrize("error", LOST_RANK_ERRORS, ids=str)
def test_lost_rank_is_transient(error: Exception) -> None:
    with pytest.raises(TransientError, match=r"^Another rank of this run was lost \("), lost_rank_errors(StopFlag()):
        raise error


def test_message_quotes_the_cause_without_advice_and_source_file() -> None:
    source = "[/src/third_party/gloo/gloo/transport/tcp/pair.cc:561] "
    advice = ". This is typically caused by a remote worker crashing. GLHF!"
    with pytest.raises(TransientError) as raised, lost_rank_errors(StopFlag()):
        raise RuntimeError(f"{source}Connection closed by peer [10.0.0.2]:3981{advice}\nException raised from wait")
    assert "lost (Connection closed by peer [10.0.0.2]:3981): run" in str(raised.value)


@pytest.mark.parametrize("error", LOST_RANK_ERRORS, ids=str)
def test_lost_rank_after_a_stop_is_preempted(error: Exception) -> None:
    stop = StopFlag()
    stop.set("SIGTERM")
    with pytest.raises(Preempted), lost_rank_errors(stop):
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shape '[2]' is invalid"), ValueError("gloo"), JobError("NCCL")])
def test_other_errors_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, lost_rank_errors(StopFlag()):
        raise error
    assert raised.value is error
