"""The end of a run: what is stored in which order, and what an error says about the local copy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inat_job.errors import NoPermissionError, TransientError
from inat_job.evaluation.pictures import Picture
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.reporting.publish import naming_local_copy, publish
from inat_job.storage import StorageOptions
from inat_job.storage.lease import LeaseError
from inat_job.storage.retry import RetryableError
from inat_job.storage.run_folder import RunFolder
from tests.evaluation.made_predictions import table_of
from tests.harness.run_folders import open_run_folder
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

    def log_images(self, images: Mapping[str, object]) -> None:
        self.calls.append(list(images))

    def log_table(self, name: str, columns: list[str], rows: list[list[object]]) -> None:
        self.calls.append((name, rows[0][0]))

    def log_confusion(self, classes: list[str], counts: list[list[int]]) -> None:
        self.calls.append((classes, counts))

    def log_model(self, folder: Path) -> None:
        self.calls.append(sorted(path.name for path in folder.iterdir()))

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


TABLE = table_of(np.array([[2.0, 0.0], [2.0, 0.0]]), [0, 1], ["A & B", "C"])
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
    (folder.attempt_folder / "tensorboard" / "r").mkdir(parents=True)
    (folder.attempt_folder / "tensorboard" / "r" / "events").touch()
    pictures = [Picture(name, name, "", folder.write(f"plots/{name}.png", name)) for name in ("confusion", "filters")]
    publish(folder, tracker, REPORT_WITH_LOSS, TABLE, pictures)  # type: ignore[arg-type]
    assert sorted(stored[:-3]) == [
        "metrics.jsonl",
        "model/model.json",
        "plots/confusion.png",
        "plots/filters.png",
        "predictions.csv",
        "report.html",
    ]
    assert stored[-3:] == ["report.json", "wandb/run.wandb", "tensorboard/r/events"]
    matrix = (["A & B", "C"], REPORT["test"]["confusion"])
    calls = [["confusion", "filters"], ("test_predictions", "test/0001"), matrix, ["model.json"], 0.75, ("finish", 0)]
    assert tracker.calls == calls
    assert folder.read_json("report.json") == REPORT_WITH_LOSS


def test_page_that_fails_does_not_fail_the_run(folder: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    broken = REPORT_WITH_LOSS | {"environment": None}
    publish(folder, RecordingTracker(), broken, TABLE)  # type: ignore[arg-type]
    assert "report.html could not be made" in capsys.readouterr().out
    assert folder.store.stat("report.json")
    assert not folder.store.stat("report.html")


def test_predictions_are_stored_and_read_back(folder: RunFolder, tmp_path: Path) -> None:
    publish(folder, RecordingTracker(), REPORT_WITH_LOSS, TABLE)  # type: ignore[arg-type]
    folder.store.get("predictions.csv", tmp_path / "p.csv")
    assert PredictionTable.read_csv(tmp_path / "p.csv").ids == TABLE.ids


@pytest.mark.parametrize("kind", [TransientError, NoPermissionError])
def test_error_of_the_store_names_the_local_copy(folder: RunFolder, kind: type[Exception]) -> None:
    sentence = rf"away The whole run is in {folder.local}: run the same command again"
    with pytest.raises(kind, match=sentence), naming_local_copy(folder):
        raise kind("away")


def test_lost_lease_does_not_name_the_local_copy(folder: RunFolder) -> None:
    with pytest.raises(LeaseError, match="^lost$"), naming_local_copy(folder):
        raise LeaseError("lost")


def test_error_that_outlasted_the_retries_keeps_its_sentence(folder: RunFolder) -> None:
    with pytest.raises(TransientError) as raised, naming_local_copy(folder):
        raise RetryableError("example.org did not serve x (503)", wait_s=1.0)
    assert str(raised.value) == (
        "example.org did not serve x (503) despite retries: try again later. "
        f"The whole run is in {folder.local}: run the same command again."
    )
