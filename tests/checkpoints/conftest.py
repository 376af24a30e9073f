"""A run on S3 with an unreliable store, its lease, index and uploader."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.uploader import Uploader
from inat_job.storage import StorageOptions, retry
from inat_job.storage.lease import Lease, acquire
from inat_job.storage.run_folder import RunFolder
from tests.checkpoints.unreliable_store import GRACE_S, UnreliableStore, store_of
from tests.harness.run_folders import open_run_folder


@pytest.fixture(autouse=True)
def short_retry_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.01)


@pytest.fixture
def folder(tmp_path: Path, s3_bucket: str) -> RunFolder:
    made = open_run_folder(f"s3://{s3_bucket}", "r", StorageOptions(), tmp_path / "spool")
    made.background = UnreliableStore(made.background)  # type: ignore[assignment]
    made.write("metrics.jsonl", '{"step": 1}\n')
    return made


@pytest.fixture
def lease(folder: RunFolder) -> Iterator[Lease]:
    held = acquire(folder.store, store_of(folder)._store, 60, {}, lambda holder: False, lambda: False)
    folder.fence(held.number, held.check)
    yield held
    held.end()


@pytest.fixture
def checkpoints(folder: RunFolder) -> CheckpointIndex:
    return CheckpointIndex(folder).discover(spooled=True)


@pytest.fixture
def uploader(checkpoints: CheckpointIndex, lease: Lease) -> Iterator[Uploader]:
    made = Uploader(checkpoints, lease, ["metrics.jsonl"], GRACE_S, protected=None)
    yield made
    made.end()
