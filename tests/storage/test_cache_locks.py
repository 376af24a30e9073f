"""Locks and holds on cache folders, by this process and by others that are killed."""

import os
from pathlib import Path

import pytest

from inat_job.errors import Preempted
from inat_job.signals import never
from inat_job.storage import cache_locks
from tests.harness.locks import HOLD, in_another_process


def test_hold_ends_with_killed_process(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    with in_another_process(HOLD, folder) as child:
        assert not cache_locks.is_free(folder)
        assert cache_locks.delete(folder) is None
        child.kill()
        child.wait()
        assert cache_locks.is_free(folder)
        assert cache_locks.delete(folder)
    assert not folder.exists()


def test_several_holds_end_with_their_objects(tmp_path: Path) -> None:
    first, second = cache_locks.hold_folder(tmp_path), cache_locks.hold_folder(tmp_path)
    assert first
    assert second
    del first
    assert not cache_locks.is_free(tmp_path)
    del second
    assert cache_locks.is_free(tmp_path)


def test_hold_survives_rename(tmp_path: Path) -> None:
    draft, folder = tmp_path / "f.tmp", tmp_path / "f"
    draft.mkdir()
    held = cache_locks.hold_folder(draft)
    draft.rename(folder)
    assert held
    assert not cache_locks.is_free(folder)
    del held
    assert cache_locks.delete(folder)
    assert cache_locks.hold_folder(folder) is None


def test_unreadable_folder_counts_as_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").mkdir()
    real = os.open

    def refuse(path: Path, *rest: int) -> int:
        if Path(path) == tmp_path / "f":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *rest)

    monkeypatch.setattr(os, "open", refuse)
    assert not cache_locks.is_free(tmp_path / "f")
    assert cache_locks.delete(tmp_path / "f") is None
    assert (tmp_path / "f").is_dir()


def test_waiting_for_lock_checks_stop(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with cache_locks.lock(path, tmp_path, never, "holding"), pytest.raises(Preempted, match="while waiting for it"):  # noqa: SIM117
        with cache_locks.lock(path, tmp_path, lambda: True, "waiting for it"):
            pytest.fail("the lock is held twice")
    with cache_locks.lock(path, tmp_path, lambda: True, "waiting for it"):
        pass
