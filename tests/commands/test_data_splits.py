"""Runs on data without a split: what the report says of the splits, and which settings decide them."""

import time
from pathlib import Path

import jsonschema
import pytest

from inat_job.command_options import EvaluationOptions
from inat_job.commands import test
from inat_job.errors import ConflictError
from inat_job.signals import StopFlag
from tests.harness.job_runs import SCHEMA, Make, report_of, run
from tests.harness.made_images import CLASSES, encoded, write_folder, write_zip

pytestmark = pytest.mark.filterwarnings("ignore")


def test_report_of_a_run_on_one_folder_a_class(settings: Make, tmp_path) -> None:
    files = {
        f"{label}/{at:02d}.jpg": encoded(100 * number + at) for number, label in enumerate(CLASSES) for at in range(20)
    }
    made = settings(data__uri=str(write_zip(tmp_path / "flat.zip", files)), data__val_share="0.25", train__epochs="1")
    run(made)
    report = report_of(made)
    jsonschema.validate(report, SCHEMA)
    data = report["data"]
    assert (data["test_share"], data["val_share"]) == (0.2, 0.25)
    assert (data["n_train"], data["n_val"], data["n_test"]) == (36, 12, 12)
    assert "20 % of each class, split off by content" in (tmp_path / "runs" / "r" / "report.html").read_text()
    assert made.run_id == "r"
    assert settings(data__val_share="0.25").fingerprint() != settings().fingerprint()


@pytest.mark.soak
def test_run_that_split_off_another_test_set_is_told(
    settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        f"{label}/{at:02d}.jpg": encoded(99 * number + at) for number, label in enumerate("AB") for at in range(20)
    }
    flat = {"data__uri": str(write_zip(tmp_path / "flat.zip", files)), "train__epochs": "1"}
    run(settings(**flat, run__run_id="first", data__test_share="0.4"))
    run(settings(**flat, run__run_id="same", data__test_share="0.4", run__init_from="first"))
    flags = {"run.output": str(tmp_path / "runs"), "data.cache_dir": str(tmp_path / "cache"), "tracker.mode": "off"}

    def tested(**changes: str) -> None:
        checkpoint = str(tmp_path / "runs" / "first")
        made = test.settings_of(
            checkpoint, flags | {f"data.{name}": value for name, value in changes.items()}, [], None
        )
        test.run_all([made], [checkpoint], EvaluationOptions(), StopFlag(), time.perf_counter())

    tested()
    assert "was trained with --test-share" not in capsys.readouterr().out
    said = "first was trained with --test-share 0.4, and this has 0.2: images that it learned may be test images now"
    run(settings(**flat, run__run_id="other", run__init_from="first"))
    assert said in capsys.readouterr().out
    tested(test_share="0.2")
    assert said in capsys.readouterr().out


def test_wrong_layout_begins_no_run(settings: Make, tmp_path) -> None:
    folder = write_folder(tmp_path / "x", {f"train/{name}/{at}.jpg": b"x" for name in "AB" for at in range(3)})
    folder = write_folder(folder, {f"val/{name}/1.jpg": b"x" for name in "AB"})
    with pytest.raises(ConflictError, match="--test-share is 0.3, but .* has a test set of its own: leave it out"):
        run(settings(data__uri=str(folder), data__test_share="0.3"))
    assert not (tmp_path / "runs" / "r").exists()
