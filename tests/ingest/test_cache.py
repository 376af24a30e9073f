"""Listing and pruning the cache folder while jobs use it."""

import time
from pathlib import Path

import pytest

from inat_job.ingest import cache
from inat_job.ingest.cache import list_entries, prune
from inat_job.storage import cache_locks
from tests.harness.locks import LOCK, in_another_process


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    """A cache folder with one folder of each kind, each with a file."""
    for name in ("prepared/p/pixels.u8", "downloads/d/x-a.zip", "features/f/val.bin", "weights/w/r.pth", "spool/h/r/c"):
        path = tmp_path / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"x" * 5000)
    return tmp_path


def test_hold_updates_used_at(tmp_path: Path, cache_dir: Path) -> None:
    before = next(entry for entry in list_entries(cache_dir) if entry.kind == "images").used_at
    time.sleep(0.05)
    assert cache_locks.hold_folder(cache_dir / "prepared/p")
    (entry,) = (entry for entry in list_entries(cache_dir) if entry.kind == "images")
    assert entry.used_at > before
    assert list_entries(cache_dir)[-1] == entry, "least recently used first"


def test_locked_folder_is_not_pruned(cache_dir: Path) -> None:
    for locked, name in (
        ("prepared/p.lock", "prepared/p"),
        ("downloads/d/x-a.zip.lock", "downloads/d"),
        ("features/f.lock", "features/f"),
    ):
        (entry,) = (entry for entry in cache.list_entries(cache_dir) if entry.folder == cache_dir / name)
        assert not entry.in_use
        with in_another_process(LOCK, cache_dir / locked):
            (entry,) = (entry for entry in cache.list_entries(cache_dir) if entry.folder == cache_dir / name)
            assert entry.in_use
            assert not prune(entry)
        assert prune(entry)
        assert not entry.folder.exists()


def test_spool_is_never_pruned(cache_dir: Path) -> None:
    assert [prune(entry) for entry in list_entries(cache_dir) if entry.kind == "run"] == [False]
    assert (cache_dir / "spool/h/r/c").exists()


def test_remove_leftovers(cache_dir: Path) -> None:
    cache_locks.delete(cache_dir / "weights/w")
    assert not [entry for entry in list_entries(cache_dir) if entry.kind == "weights"]
    cache.remove_leftovers(cache_dir)
    assert not list((cache_dir / "weights").iterdir())


def test_missing_cache_folder_is_empty(tmp_path: Path) -> None:
    assert list_entries(tmp_path / "none") == []
