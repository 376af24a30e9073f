"""A training state on disk: hashed while it is written, complete or absent, and read without running code."""

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from inat_job.checkpoints import training_state
from inat_job.checkpoints.training_state import InMemoryCheckpointIO
from inat_job.errors import BadDataError, ConflictError

STATE: dict[str, Any] = {
    "state_dict": {"weight": torch.arange(6.0).view(2, 3)},
    "loops": {"fit_loop": {"epoch": 1}},
    "optimizer_states": [{"state": {}}],
    "lr_schedulers": [{"last_epoch": 6}],
    "epoch": 1,
    "global_step": 6,
}


def test_write_returns_hash_and_size_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "6.ckpt"
    sha256, size = training_state.write(STATE, path)
    assert (sha256, size) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size)
    state = training_state.read(path)
    assert torch.equal(state.pop("state_dict")["weight"], STATE["state_dict"]["weight"])
    assert state == {name: value for name, value in STATE.items() if name != "state_dict"}
    assert list(tmp_path.iterdir()) == [path]


def test_write_to_a_full_disk_is_a_conflict_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, block: Any) -> int:
        self.error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise self.error

    monkeypatch.setattr(training_state._HashingFile, "write", full)
    with pytest.raises(ConflictError, match=r"6\.ckpt cannot be written \(No space left on device\): free some disk"):
        training_state.write(STATE, tmp_path / "6.ckpt")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", sorted(training_state._REQUIRED))
def test_resume_from_an_incomplete_state_is_refused(missing: str, tmp_path: Path) -> None:
    path = tmp_path / "6.ckpt"
    training_state.write({name: value for name, value in STATE.items() if name != missing}, path)
    with pytest.raises(BadDataError, match=rf"{missing}|has no weights"):
        InMemoryCheckpointIO().load_checkpoint(path)


class _Code:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("ran",))


def test_read_runs_no_code_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"weight": _Code()}}, tmp_path / "6.ckpt")
    with pytest.raises(BadDataError, match="is no checkpoint of this job"):
        training_state.read(tmp_path / "6.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"<html>", b"PK\x03\x04 and then cut"])
def test_read_of_a_damaged_file_is_bad_data(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "6.ckpt").write_bytes(content)
    with pytest.raises(BadDataError, match="delete it with its manifest"):
        training_state.read(tmp_path / "6.ckpt")
