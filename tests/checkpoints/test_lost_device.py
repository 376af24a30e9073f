"""The uploader after the loss of the device: it stores what is on disk, and writes nothing more from the device."""

import threading
from pathlib import Path

import pytest
import torch

from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.uploader import Uploader, uploading
from inat_job.errors import DeviceError, TransientError
from inat_job.signals import StopFlag
from inat_job.storage import retry
from inat_job.storage.lease import Lease
from inat_job.storage.run_folder import RunFolder
from tests.checkpoints.unreliable_store import GRACE_S, copies, manifest, store_of, stored_steps, wait_until

LOST = torch.AcceleratorError("CUDA error: unspecified launch failure")


def lost(path: Path) -> tuple[str, int]:
    raise LOST


@pytest.mark.parametrize("error", [LOST, DeviceError("GPU 0 failed.")], ids=["torch's", "ours"])
def test_files_are_stored_and_states_on_the_device_given_up(
    folder: RunFolder,
    checkpoints: CheckpointIndex,
    lease: Lease,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended = threading.Event()

    def still_copied(path: Path) -> tuple[str, int]:
        ended.wait()
        raise LOST

    monkeypatch.setattr(retry, "FIRST_WAIT_S", 60.0)
    store_of(folder).error = TransientError("away")

    def work() -> None:
        with uploading(checkpoints, lease, ["metrics.jsonl"], StopFlag(), GRACE_S, None) as uploader:
            uploader.save(manifest(1), copies(b"state 1"))
            wait_until(lambda: uploader._last_error is not None and uploader._active is None)
            uploader.save(manifest(2), lambda: still_copied)
            store_of(folder).error = None
            raise error

    with pytest.raises(type(error)):
        work()
    ended.set()
    assert stored_steps(folder) == {1}
    assert [each.step for each in checkpoints.known] == [1]


def test_thread_that_meets_the_loss_first_reports_it_and_goes_on(
    uploader: Uploader, checkpoints: CheckpointIndex, folder: RunFolder
) -> None:
    uploader.save(manifest(1), copies(b"state 1"))
    wait_until(lambda: stored_steps(folder) == {1} and uploader._active is None)
    uploader.save(manifest(2), lambda: lost)
    wait_until(lambda: uploader._write_error is LOST)
    with pytest.raises(torch.AcceleratorError):
        uploader.raise_if_failed()
    with pytest.raises(torch.AcceleratorError):
        uploader.wait_until_written()
    assert uploader.flush(GRACE_S)
    assert [each.step for each in checkpoints.known] == [1]
