"""The words that a platform finds when the job has ended, in real files."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from inat_job.run import termination_message

Stored = tuple[int | None, str | None]
STORED: Stored = (120, "s3://b/r/checkpoints/120.ckpt")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A termination log as Kubernetes mounts it: empty, and there."""
    path = tmp_path / "termination-log"
    path.touch()
    return path


@pytest.fixture
def opt_ml(tmp_path: Path) -> Path:
    folder = tmp_path / "ml"
    (folder / "output").mkdir(parents=True)
    return folder


def say(log: Path, code: int, reason: str, stored: Stored = STORED, environment: Any = None) -> Any:
    termination_message.write(code, reason, *stored, environment or {}, log)
    content = log.read_bytes()
    assert content.endswith(b"\n")
    assert content.count(b"\n") == 1
    assert len(content) <= 4096
    return json.loads(content)


def test_one_line_of_json_whether_it_failed_or_not(log: Path) -> None:
    kept = {"step": 120, "checkpoint": "s3://b/r/checkpoints/120.ckpt"}
    assert say(log, 143, "Preempted; step 120\nis stored.") == {
        "code": 143,
        "reason": "Preempted; step 120 is stored.",
        **kept,
    }
    assert say(log, 0, "Done.") == {"code": 0, "reason": "Done.", **kept}


def test_what_is_not_known_is_null(log: Path) -> None:
    assert say(log, 2, "No.", (None, None)) == {"code": 2, "reason": "No.", "step": None, "checkpoint": None}


@pytest.mark.parametrize("letter", ["a", "é", "€", "😀", '"', "\\", "\x01", "\udcff"])
@pytest.mark.parametrize("length", [1000, 3990, 4000, 4010, 4096, 100_000])
def test_a_long_reason_is_cut_and_the_line_stays_whole(log: Path, letter: str, length: int) -> None:
    reason = letter * length
    words = say(log, 65, reason, (120, "s3://b/" + letter * length))
    assert words["code"] == 65
    assert words["step"] == 120
    whole = reason.encode(errors="backslashreplace").decode()
    assert words["reason"] == whole or words["reason"] == whole[: len(words["reason"]) - 1] + "…"
    assert len(words["reason"]) > 300


def test_the_room_is_used(log: Path) -> None:
    say(log, 65, "x" * 10_000, (None, None))
    assert 4090 <= log.stat().st_size <= 4096


def test_a_shorter_line_leaves_nothing_of_a_longer_one(log: Path) -> None:
    say(log, 1, "x" * 2000)
    assert say(log, 1, "y")["reason"] == "y"


def test_a_log_is_never_made(tmp_path: Path) -> None:
    termination_message.write(1, "No.", *STORED, {}, tmp_path / "termination-log")
    assert not list(tmp_path.iterdir())


def test_what_is_no_file_is_left_alone(tmp_path: Path) -> None:
    folder, fifo, link, aim = (tmp_path / name for name in ("folder", "fifo", "link", "aim"))
    folder.mkdir()
    os.mkfifo(fifo)  # an open of it would wait for a reader
    aim.write_text("precious")
    link.symlink_to(aim)
    for path in (folder, fifo, link, Path("/dev/full"), tmp_path / "none" / "log"):
        termination_message.write(1, "No.", *STORED, {}, path)
    assert aim.read_text() == "precious"
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every file")
def test_a_log_that_may_not_be_written(log: Path) -> None:
    log.chmod(0o400)
    termination_message.write(1, "No.", *STORED, {}, log)
    assert log.read_bytes() == b""


def test_sagemaker_is_told_of_failures_alone(log: Path, opt_ml: Path) -> None:
    failure, environment = opt_ml / "output" / "failure", {"SAGEMAKER_BASE_DIR": str(opt_ml)}
    say(log, 0, "Done.", environment=environment)
    assert not failure.exists()
    say(log, 65, "Bad  data.", environment=environment)
    assert failure.read_text() == "Bad data."
    say(log, 65, "é" * 2000, environment=environment)
    assert failure.read_text() == "é" * 1023 + "…"


def test_sagemakers_output_folder_is_made_and_no_other(tmp_path: Path) -> None:
    for base in (tmp_path, tmp_path / "none"):
        termination_message.write(1, "No.", *STORED, {"SAGEMAKER_BASE_DIR": str(base)}, tmp_path / "log")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["output", "output/failure"]


def test_a_failure_without_a_reason_still_has_useful_characters(log: Path, opt_ml: Path) -> None:
    say(log, 1, " ", environment={"SAGEMAKER_BASE_DIR": str(opt_ml)})
    assert (opt_ml / "output" / "failure").read_text() == "Ended with code 1."


def test_a_damaged_sagemaker_folder_is_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file where a folder should be")
    termination_message.write(1, "No.", *STORED, {"SAGEMAKER_BASE_DIR": str(tmp_path)}, tmp_path / "log")
    assert (tmp_path / "output").read_text().startswith("a file")
