"""Several jobs on one cache folder, and a folder that takes nothing."""

import errno
import multiprocessing
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from inat_job.data.cache_index import Cache, load
from inat_job.errors import ConflictError, Preempted
from inat_job.ingest import build_cache, data_source
from inat_job.signals import never
from inat_job.storage import StorageOptions, cache_locks, open_store
from tests.harness.made_images import tree, write_folder, write_zip


def prepared(uri: object, cache_dir: Path) -> Cache:
    source = data_source.find(str(uri), cache_dir, StorageOptions(), never)
    return build_cache.prepare(source, cache_dir, 32, 0.01, never)


def _prepare_in_child(path: str, cache_dir: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(prepared(path, Path(cache_dir)).index.pixels_sha256)


@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_two_jobs_at_once_both_succeed(scheme: str, tmp_path: Path, s3_bucket: str) -> None:
    path: Path | str = write_zip(tmp_path / "x.zip", tree(train=40))
    if scheme == "s3":
        open_store(f"s3://{s3_bucket}").put("x.zip", path)
        path = f"s3://{s3_bucket}/x.zip"
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    children = [
        context.Process(target=_prepare_in_child, args=(str(path), str(tmp_path / "cache"), barrier, results))
        for _ in range(2)
    ]
    for child in children:
        child.start()
    digests = {results.get(timeout=60) for _ in children}
    for child in children:
        child.join(timeout=60)
    assert len(digests) == 1
    assert [child.exitcode for child in children] == [0, 0]


@pytest.mark.parametrize("scheme", ["demo", "file", "folder", "s3"])
def test_a_cache_folder_that_takes_nothing_is_a_conflict(scheme: str, tmp_path: Path, s3_bucket: str) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    open_store(f"s3://{s3_bucket}").put("x.zip", path)
    folder = write_folder(tmp_path / "loose", tree())
    uri = {"demo": "demo:", "file": path, "folder": folder, "s3": f"s3://{s3_bucket}/x.zip"}[scheme]
    (tmp_path / "file").touch()
    with pytest.raises(ConflictError, match="--cache-dir .*/file cannot be written"):
        prepared(uri, tmp_path / "file")


def test_a_complete_cache_is_opened_though_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    first = prepared(path, tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / "sources")
    (tmp_path / "cache" / "sources").touch()
    forbidden: Any = lambda *args: pytest.fail("a lock was taken")  # noqa: E731
    monkeypatch.setattr(build_cache, "lock", forbidden)
    assert prepared(path, tmp_path / "cache") == first


def test_a_complete_cache_may_be_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    first = prepared(path, tmp_path / "cache")
    original = os.open

    def read_only(file: Any, flags: int, *more: Any, **options: Any) -> int:
        if str(file).startswith(str(tmp_path / "cache")) and flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(errno.EACCES, "Permission denied")  # root may write anywhere
        return original(file, flags, *more, **options)

    monkeypatch.setattr(os, "open", read_only)
    assert prepared(path, tmp_path / "cache") == first


def test_a_stop_is_read_while_a_cache_is_checked(tmp_path: Path) -> None:
    cache = prepared(write_zip(tmp_path / "x.zip", tree()), tmp_path / "cache")
    with pytest.raises(Preempted, match="checking the prepared images"):
        load(cache.folder, lambda: True)


def test_who_waits_for_a_lock_reads_the_stop_flag(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    with cache_locks.lock(path, tmp_path, never, "holding"), pytest.raises(Preempted, match="while waiting for it"):  # noqa: SIM117
        with cache_locks.lock(path, tmp_path, lambda: True, "waiting for it"):
            pytest.fail("the lock is held twice")
    with cache_locks.lock(path, tmp_path, lambda: True, "waiting for it"):
        pass


def test_a_write_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "x", b"one")
    write_atomic(tmp_path / "a" / "x", b"two")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "a").iterdir()] == [("x", b"two")]
