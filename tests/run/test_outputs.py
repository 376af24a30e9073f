"""The files copied to where a platform collects them, from runs in a folder and on S3."""

import os
from pathlib import Path

import pytest

from inat_job.errors import NoPermissionError
from inat_job.platforms.platform import NO_PLATFORM, Platform
from inat_job.run import outputs
from inat_job.storage import StorageOptions
from inat_job.storage.run_folder import RunFolder
from tests.harness.run_folders import open_run_folder

RUN = ("config.json", "metrics.jsonl", "checkpoints/1.ckpt", "wandb/x", "attempts/1.json")
MODEL = ("model/model.json", "model/model.safetensors")
RESULTS = ("report.json", "report.html", "predictions.csv", "plots/curves.png")


def platform_in(folder: Path) -> Platform:
    return Platform("SageMaker", model_folder=folder / "ml/model", results_folder=folder / "ml/output/data")


def files(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def finished_run(output: str, spools: Path) -> RunFolder:
    folder = open_run_folder(output, "r", StorageOptions(), spools)
    for name in (*RUN, *MODEL, *RESULTS, "report.json.old"):
        folder.write(name, f"the {name}")
        folder.publish(name)
    return folder


def assert_collected(ml: Path) -> None:
    assert files(ml / "model") == {name.removeprefix("model/"): f"the {name}" for name in MODEL}
    assert files(ml / "output/data") == {name: f"the {name}" for name in RESULTS}


def test_collect_copies_only_model_and_results(tmp_path: Path) -> None:
    folder = finished_run(str(tmp_path / "runs"), tmp_path / "spool")
    for _ in range(2):
        outputs.collect_results(platform_in(tmp_path), folder)
        assert_collected(tmp_path / "ml")


def test_collect_from_s3_on_another_machine(tmp_path: Path, s3_bucket: str) -> None:
    finished_run(f"s3://{s3_bucket}/runs", tmp_path / "other")
    folder = open_run_folder(f"s3://{s3_bucket}/runs", "r", StorageOptions(), tmp_path / "here")
    outputs.collect_results(platform_in(tmp_path), folder)
    assert_collected(tmp_path / "ml")


def test_collect_does_nothing_without_a_platform(tmp_path: Path) -> None:
    folder = finished_run(str(tmp_path / "runs"), tmp_path / "spool")
    before = files(tmp_path)
    outputs.check_folders(NO_PLATFORM)
    outputs.collect_results(NO_PLATFORM, folder)
    assert files(tmp_path) == before


def test_check_folders_leaves_no_file_behind(tmp_path: Path) -> None:
    outputs.check_folders(platform_in(tmp_path))
    assert files(tmp_path) == {}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_read_only_output_folder_is_named_with_the_fix(tmp_path: Path) -> None:
    platform = platform_in(tmp_path)
    assert platform.results_folder
    platform.results_folder.mkdir(parents=True)
    platform.results_folder.chmod(0o500)
    with pytest.raises(NoPermissionError, match=r"SageMaker collects .*output/data, where user .* USER 0"):
        outputs.check_folders(platform)


OVERLAY = "100 90 0:50 / / rw,relatime master:1 - overlay overlay rw,lowerdir=/l"
DISK = "24 1 254:0 / / rw,relatime - ext4 /dev/vda rw"
RUNS = "101 100 8:1 /home/me/my\\040runs /scratch/my\\040runs rw - ext4 /dev/sda1 rw"
MEMORY = "102 100 0:51 / /scratch rw - tmpfs tmpfs rw"


@pytest.mark.parametrize(
    ("mounts", "uri", "pids", "is_lost"),
    [
        ([OVERLAY], "/scratch/runs/r", (1, 0), True),
        ([OVERLAY], "/scratch/runs/r", (7, 1), True),  # docker run --init
        ([OVERLAY], "/scratch/runs/r", (7, 6), False),  # a process of a container that goes on
        ([OVERLAY, RUNS], "/scratch/my runs/r", (1, 0), False),
        ([OVERLAY, RUNS], "/scratch/my runs of old/r", (1, 0), True),
        ([OVERLAY, MEMORY], "/scratch/runs/r", (1, 0), True),
        ([OVERLAY, MEMORY, RUNS], "/scratch/my runs/r", (1, 0), False),
        ([OVERLAY], "s3://bucket/runs/r", (1, 0), False),
        ([DISK, MEMORY], "/scratch/runs/r", (1, 0), False),  # no container
        (["?"], "/scratch/runs/r", (1, 0), False),
    ],
)
def test_warning_of_a_run_that_is_lost_with_its_container(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mounts: list[str],
    uri: str,
    pids: tuple[int, int],
    is_lost: bool,
) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text("\n".join(mounts) + "\n")
    warnings: list[str] = []
    monkeypatch.setattr(outputs.events, "warn", warnings.append)
    outputs.warn_of_loss(uri, tmp_path, pids)
    assert len(warnings) == is_lost
    assert not warnings or uri in warnings[0]
