"""One checkpoint in the store: the file before its manifest, the manifest before the pointer, and retention."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.checkpoint_store import CheckpointStore
from inat_job.checkpoints.manifest import Manifest
from inat_job.storage import DamagedFileError, disk
from inat_job.storage.lease import Lease, LeaseError
from inat_job.storage.run_folder import RunFolder
from inat_job.storage.s3 import multipart_upload
from tests.checkpoints.unreliable_store import manifest, store_of, stored_keys, stored_steps


def no_progress(done: int, total: int) -> None:
    pass


def written(folder: RunFolder, step: int, accuracy: float | None = None) -> Manifest:
    """The manifest of a checkpoint whose file is on this machine."""
    content = b"%d" % step
    made = manifest(step, accuracy, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    folder.write(made.name, content)
    return made


def put(store: CheckpointStore, index: CheckpointIndex, made: Manifest) -> None:
    store.put_file(made, no_progress)
    store.put_manifest(made)
    index.mark_stored(made)


@pytest.fixture
def store(checkpoints: CheckpointIndex, lease: Lease) -> CheckpointStore:
    return CheckpointStore(checkpoints, ["metrics.jsonl"], protected=None)


def test_checkpoint_does_not_exist_before_its_manifest(
    folder: RunFolder, store: CheckpointStore, checkpoints: CheckpointIndex
) -> None:
    made = written(folder, 6)
    store.put_file(made, no_progress)
    assert CheckpointIndex(folder).discover().stored == []
    store.put_manifest(made)
    assert CheckpointIndex(folder).discover().stored == [made]
    pointer = json.loads(folder.store.read("checkpoints/latest.json"))
    assert pointer == {"step": 6, "manifest": "checkpoints/6.json", "sha256": made.sha256}
    assert folder.store.read("metrics.jsonl") == b'{"step": 1}\n'


@pytest.mark.parametrize("content", [b"7", b"short"])
def test_put_file_refuses_a_file_that_is_not_what_was_written(
    folder: RunFolder, store: CheckpointStore, content: bytes
) -> None:
    made = written(folder, 6)
    folder.write(made.name, content)
    with pytest.raises(DamagedFileError, match="is not what was written"):
        store.put_file(made, no_progress)
    assert stored_keys(folder) == []


def test_put_file_reads_a_file_once(folder: RunFolder, store: CheckpointStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is hashed while it is sent."""
    read: list[int] = []
    pread = os.pread

    def noting(descriptor: int, count: int, start: int) -> bytes:
        read.append(start)
        return pread(descriptor, count, start)

    def unwanted(path: Path) -> None:
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr(multipart_upload, "SINGLE_REQUEST_LIMIT", 100)
    monkeypatch.setattr(os, "pread", noting)
    monkeypatch.setattr(disk, "read_blocks", unwanted)
    content = bytes(2 * multipart_upload.PART_SIZE + 5)
    made = manifest(6, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    folder.path(made.name).write_bytes(content)
    store.put_file(made, no_progress)
    assert read == [0, multipart_upload.PART_SIZE, 2 * multipart_upload.PART_SIZE]
    assert stored_keys(folder) == [made.name]


def test_pointer_moved_by_another_job_needs_the_lease(
    folder: RunFolder, store: CheckpointStore, checkpoints: CheckpointIndex
) -> None:
    put(store, checkpoints, written(folder, 6))
    folder.store.put("checkpoints/latest.json", b"{}")
    put(store, checkpoints, written(folder, 7))  # this job still holds the lease, so it moves the pointer back
    assert json.loads(folder.store.read("checkpoints/latest.json"))["step"] == 7
    folder.store.put("attempts/2.json", b"{}")
    with pytest.raises(LeaseError):
        store.put_manifest(written(folder, 8))
    assert json.loads(folder.store.read("checkpoints/latest.json"))["step"] == 7


def test_retention_deletes_all_but_the_best_the_last_two_and_the_protected(
    folder: RunFolder, checkpoints: CheckpointIndex, lease: Lease
) -> None:
    store = CheckpointStore(checkpoints, [], protected=2)
    for step, accuracy in enumerate((0.1, 0.9, 0.2, 0.3, 0.4, 0.5)):
        put(store, checkpoints, written(folder, step, accuracy))
    store.apply_retention()
    assert stored_steps(folder) == {1, 2, 4, 5}
    assert [each.step for each in checkpoints.stored] == [1, 2, 4, 5]
    deleted = [call for call in store_of(folder).calls if call.startswith("-checkpoints/0")]
    assert deleted == ["-checkpoints/0.json", "-checkpoints/0.ckpt"]
    assert not (folder.local / "checkpoints/0.ckpt").exists()


def test_files_without_manifest_are_deleted_at_the_start(
    folder: RunFolder, checkpoints: CheckpointIndex, lease: Lease
) -> None:
    folder.store.put("checkpoints/9.ckpt", b"no manifest")
    store = CheckpointStore(CheckpointIndex(folder).discover(), [], protected=None)
    store.finish_earlier()
    assert stored_keys(folder) == []
