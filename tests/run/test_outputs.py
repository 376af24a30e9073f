"""What is put where a platform collects it, from runs in a folder and on S3."""

import os
from pathlib import Path

import pytest

from inat_job.errors import NoPermissionError
from inat_job.platforms.platform import NO_PLATFORM, Platform
from inat_job.run import outputs
from inat_job.storage import StorageOptions
from inat_job.storage.run_folder import RunFolder, open_run_folder

RUN = ("config.json", "metrics.jsonl", "checkpoints/1.ckpt", "wandb/x", "attempts/1.json")
MODEL = ("model/model.json", "model/model.safetensors")
RESULTS = ("report.json", "report.html", "plots/curves.png")


def place_in(folder: Path) -> Platform:
    return Platform("SageMaker", model_folder=folder / "ml/model", results_folder=folder / "ml/output/data")


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def finished(output: str, spools: Path) -> RunFolder:
    folder = open_run_folder(output, "r", StorageOptions(), spools)
    for name in (*RUN, *MODEL, *RESULTS, "report.json.old"):
        folder.write(name, f"the {name}")
        folder.publish(name)
    return folder


def check_collected(ml: Path) -> None:
    assert files(ml / "model") == {name.removeprefix("model/"): f"the {name}" for name in MODEL}
    assert files(ml / "output/data") == {name: f"the {name}" for name in RESULTS}


def test_the_model_alone_and_the_results_alone(tmp_path: Path) -> None:
    folder = finished(str(tmp_path / "runs"), tmp_path / "spool")
    for _ in range(2):
        outputs.collect(place_in(tmp_path), folder)
        check_collected(tmp_path / "ml")


def test_a_run_on_s3_that_another_machine_finished(tmp_path: Path, s3_bucket: str) -> None:
    finished(f"s3://{s3_bucket}/runs", tmp_path / "there")
    folder = open_run_folder(f"s3://{s3_bucket}/runs", "r", StorageOptions(), tmp_path / "here")
    outputs.collect(place_in(tmp_path), folder)
    check_collected(tmp_path / "ml")


def test_nothing_is_collected_where_nobody_collects(tmp_path: Path) -> None:
    folder = finished(str(tmp_path / "runs"), tmp_path / "spool")
    before = files(tmp_path)
    outputs.check(NO_PLATFORM)
    outputs.collect(NO_PLATFORM, folder)
    assert files(tmp_path) == before


def test_the_check_leaves_nothing_behind(tmp_path: Path) -> None:
    outputs.check(place_in(tmp_path))
    assert files(tmp_path) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_named_with_the_mend(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    assert place.results_folder
    place.results_folder.mkdir(parents=True)
    place.results_folder.chmod(0o500)
    with pytest.raises(NoPermissionError, match=r"SageMaker collects .*output/data, and user .* USER 0"):
        outputs.check(place)
