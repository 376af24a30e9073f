"""termination_message.py: how the job ended, in the file where its platform looks."""

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
    """A termination log as Kubernetes mounts it: an empty file."""
    path = tmp_path / "termination-log"
    path.touch()
    return path


@pytest.fixture
def opt_ml(tmp_path: Path) -> Path:
    folder = tmp_path / "ml"
    (folder / "output").mkdir(parents=True)
    return folder


def write(log: Path, code: int, reason: str, stored: Stored = STORED, environment: Any = None) -> Any:
    termination_message.write(code, reason, *stored, environment or {}, log)
    content = log.read_bytes()
    assert content.endswith(b"\n")
    assert content.count(b"\n") == 1
    assert len(content) <= 4096
    return json.loads(content)


def test_one_json_line_for_success_and_failure(log: Path) -> None:
    stored = {"step": 120, "checkpoint": "s3://b/r/checkpoints/120.ckpt"}
    assert write(log, 143, "Preempted; step 120\nis stored.") == {
        "code": 143,
        "reason": "Preempted; step 120 is stored.",
        **stored,
    }
    assert write(log, 0, "Done.") == {"code": 0, "reason": "Done.", **stored}


def test_unknown_values_are_null(log: Path) -> None:
    assert write(log, 2, "No.", (None, None)) == {"code": 2, "reason": "No.", "step": None, "checkpoint": None}


@pytest.mark.parametrize("letter", ["a", "é", "€", "😀", '"', "\\", "\x01", "\udcff"])
@pytest.mark.parametrize("length", [1000, 3990, 4000, 4010, 4096, 100_000])
def test_long_texts_are_cut_to_fit(log: Path, letter: str, length: int) -> None:
    reason = letter * length
    message = write(log, 65, reason, (120, "s3://b/" + letter * length))
    assert message["code"] == 65
    assert message["step"] == 120
    full = reason.encode(errors="backslashreplace").decode()
    assert message["reason"] == full or message["reason"] == full[: len(message["reason"]) - 1] + "…"
    assert len(message["reason"]) > 300


def test_cut_texts_use_the_whole_limit(log: Path) -> None:
    write(log, 65, "x" * 10_000, (None, None))
    assert 4090 <= log.stat().st_size <= 4096


def test_shorter_line_replaces_a_longer_one(log: Path) -> None:
    write(log, 1, "x" * 2000)
    assert write(log, 1, "y")["reason"] == "y"


def test_termination_log_is_never_created(tmp_path: Path) -> None:
    termination_message.write(1, "No.", *STORED, {}, tmp_path / "termination-log")
    assert not list(tmp_path.iterdir())


def test_only_a_regular_file_is_written(tmp_path: Path) -> None:
    folder, fifo, link, target = (tmp_path / name for name in ("folder", "fifo", "link", "target"))
    folder.mkdir()
    os.mkfifo(fifo)  # opening it would wait for a reader
    target.write_text("precious")
    link.symlink_to(target)
    for path in (folder, fifo, link, Path("/dev/full"), tmp_path / "none" / "log"):
        termination_message.write(1, "No.", *STORED, {}, path)
    assert target.read_text() == "precious"
    assert stat.S_ISFIFO(fifo.stat().st_mode)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write to every file")
def test_unwritable_log_is_ignored(log: Path) -> None:
    log.chmod(0o400)
    termination_message.write(1, "No.", *STORED, {}, log)
    assert log.read_bytes() == b""


def test_failure_file_is_for_failures_only(log: Path, opt_ml: Path) -> None:
    failure, environment = opt_ml / "output" / "failure", {"SAGEMAKER_BASE_DIR": str(opt_ml)}
    write(log, 0, "Done.", environment=environment)
    assert not failure.exists()
    write(log, 65, "Bad  data.", environment=environment)
    assert failure.read_text() == "Bad data."
    write(log, 65, "é" * 2000, environment=environment)
    assert failure.read_text() == "é" * 1023 + "…"


def test_failure_folder_is_created_but_not_its_parents(tmp_path: Path) -> None:
    for base in (tmp_path, tmp_path / "none"):
        termination_message.write(1, "No.", *STORED, {"SAGEMAKER_BASE_DIR": str(base)}, tmp_path / "log")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["output", "output/failure"]


def test_failure_without_a_reason(log: Path, opt_ml: Path) -> None:
    write(log, 1, " ", environment={"SAGEMAKER_BASE_DIR": str(opt_ml)})
    assert (opt_ml / "output" / "failure").read_text() == "Ended with code 1."


def test_damaged_sagemaker_folder_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file where a folder should be")
    termination_message.write(1, "No.", *STORED, {"SAGEMAKER_BASE_DIR": str(tmp_path)}, tmp_path / "log")
    assert (tmp_path / "output").read_text().startswith("a file")
