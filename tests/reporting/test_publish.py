"""The end of a run: what is stored in which order, and what an error says about the local copy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from inat_job.errors import NoPermissionError, TransientError
from inat_job.reporting import publish as publish_module
from inat_job.reporting.publish import naming_local_copy, publish
from inat_job.storage import StorageOptions
from inat_job.storage.lease import LeaseError
from inat_job.storage.run_folder import RunFolder, open_run_folder
from tests.reporting.made_reports import REPORT


class RecordingTracker:
    """A tracker that notes the calls it gets, and leaves a file that its server does not have."""

    mode, run_id, url = "offline", "r", None
    sync_command: str | None = "wandb sync"

    def __init__(self) -> None:
        self.calls: list[object] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.calls.append(step)

    def summary(self, values: Mapping[str, object]) -> None:
        self.calls.append(values["test/accuracy"])

    def preempting(self) -> None:
        self.calls.append("preempting")

    def finish(self, exit_code: int) -> None:
        self.calls.append(("finish", exit_code))


@pytest.fixture
def folder(tmp_path: Path, s3_bucket: str) -> RunFolder:
    made = open_run_folder(f"s3://{s3_bucket}", "r", StorageOptions(), tmp_path / "spool")
    for name in ("metrics.jsonl", "checkpoints/6.ckpt", "wandb/run.wandb", "model/model.json"):
        made.write(name, name)
    return made


REPORT_WITH_LOSS: dict[str, Any] = REPORT | {
    "val": None,
    "test": {**REPORT["test"], "loss": 1.0},
    "data": {**REPORT["data"], "classes": ["A & B", "C"]},
}


def test_publish_stores_the_report_after_everything_else(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    stored: list[str] = []
    put = folder.store.put

    def put_and_note(key: str, *args: Any, **options: Any) -> Any:
        stored.append(key)
        return put(key, *args, **options)

    monkeypatch.setattr(folder.store, "put", put_and_note)
    tracker = RecordingTracker()
    publish(folder, tracker, REPORT_WITH_LOSS)
    assert sorted(stored[:-2]) == ["metrics.jsonl", "model/model.json", "plots/confusion.png", "report.html"]
    assert stored[-2:] == ["report.json", "wandb/run.wandb"]
    assert tracker.calls == [0.75, ("finish", 0)]
    assert folder.read_json("report.json") == REPORT_WITH_LOSS


def test_plot_that_fails_does_not_fail_the_run(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(publish_module.plots, "confusion_matrix", fail)
    publish(folder, RecordingTracker(), REPORT_WITH_LOSS)
    assert "The plots could not be drawn" in capsys.readouterr().out
    assert folder.store.stat("report.json")


@pytest.mark.parametrize("kind", [TransientError, NoPermissionError])
def test_error_of_the_store_names_the_local_copy(folder: RunFolder, kind: type[Exception]) -> None:
    sentence = rf"away The whole run is in {folder.local}: run the same command again"
    with pytest.raises(kind, match=sentence), naming_local_copy(folder):
        raise kind("away")


def test_lost_lease_does_not_name_the_local_copy(folder: RunFolder) -> None:
    with pytest.raises(LeaseError, match="^lost$"), naming_local_copy(folder):
        raise LeaseError("lost")
