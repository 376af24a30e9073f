"""Folders that a process of its own holds, lets go of, or is killed with; and those that are deleted meanwhile."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inat_job.ingest import cache
from inat_job.ingest.cache import found, prune
from inat_job.storage import cache_locks

ROOT = Path(__file__).parents[2]
HOLDS = (
    "import sys, time; from pathlib import Path; from inat_job.storage.cache_locks import hold_folder\n"
    "held = hold_folder(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
)
LOCKS = (
    "import sys, time; from pathlib import Path; from inat_job.storage.cache_locks import lock\n"
    "with lock(Path(sys.argv[1]), Path('.'), lambda: False, ''): print('locked', flush=True); time.sleep(60)"
)


@contextmanager
def another(script: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds or locks something, from here on."""
    child = subprocess.Popen([sys.executable, "-c", script, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    assert child.stdout.readline()
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """A cache folder with one of each, each with a file."""
    for name in ("prepared/p/pixels.u8", "downloads/d/x-a.zip", "features/f/val.bin", "weights/w/r.pth", "spool/h/r/c"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 5000)
    return tmp_path


def test_a_hold_ends_with_its_process_however_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "f"
    folder.mkdir()
    with another(HOLDS, folder) as child:
        assert not cache_locks.is_free(folder)
        assert cache_locks.delete(folder) is None
        child.kill()
        child.wait()
        assert cache_locks.is_free(folder)
        assert cache_locks.delete(folder)
    assert not folder.exists()


def test_a_hold_ends_with_the_object_and_several_are_held_at_once(tmp_path: Path) -> None:
    first, second = cache_locks.hold_folder(tmp_path), cache_locks.hold_folder(tmp_path)
    assert first
    assert second
    del first
    assert not cache_locks.is_free(tmp_path)
    del second
    assert cache_locks.is_free(tmp_path)


def test_it_keeps_to_a_folder_that_is_renamed_and_refuses_one_that_is_gone(tmp_path: Path) -> None:
    draft, folder = tmp_path / "f.tmp", tmp_path / "f"
    draft.mkdir()
    held = cache_locks.hold_folder(draft)
    draft.rename(folder)
    assert held
    assert not cache_locks.is_free(folder)
    del held
    assert cache_locks.delete(folder)
    assert cache_locks.hold_folder(folder) is None


def test_what_may_not_be_opened_counts_as_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_hold_notes_the_use(tmp_path: Path, cache_dir: Path) -> None:
    before = next(each for each in found(cache_dir) if each.kind == "images").used_at
    time.sleep(0.05)
    assert cache_locks.hold_folder(cache_dir / "prepared/p")
    (each,) = (each for each in found(cache_dir) if each.kind == "images")
    assert each.used_at > before
    assert found(cache_dir)[-1] == each, "longest unused first"


def test_what_others_lock_while_they_write_it_stays(cache_dir: Path) -> None:
    for locked, name in (
        ("prepared/p.lock", "prepared/p"),
        ("downloads/d/x-a.zip.lock", "downloads/d"),
        ("features/f.lock", "features/f"),
    ):
        (each,) = (each for each in cache.found(cache_dir) if each.folder == cache_dir / name)
        assert not each.in_use
        with another(LOCKS, cache_dir / locked):
            (each,) = (each for each in cache.found(cache_dir) if each.folder == cache_dir / name)
            assert each.in_use
            assert not prune(each)
        assert prune(each)
        assert not each.folder.exists()


def test_what_runs_have_yet_to_store_is_never_deleted(cache_dir: Path) -> None:
    assert [prune(each) for each in found(cache_dir) if each.kind == "run"] == [False]
    assert (cache_dir / "spool/h/r/c").exists()


def test_what_was_taken_away_and_not_deleted_is_swept(cache_dir: Path) -> None:
    cache_locks.delete(cache_dir / "weights/w")
    assert not [each for each in found(cache_dir) if each.kind == "weights"]
    cache.sweep(cache_dir)
    assert not list((cache_dir / "weights").iterdir())


def test_a_cache_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert found(tmp_path / "none") == []
