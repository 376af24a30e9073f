"""Building the decoded cache, from every kind of source, by one job or several."""

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from inat_job.data.cache_index import INDEX, PIXELS, load
from inat_job.errors import BadDataError, ConflictError, Preempted
from inat_job.ingest import build_cache, data_source, decode_all, tar_file
from inat_job.signals import never
from inat_job.storage import StorageOptions, open_store
from tests.harness.made_images import CLASSES, encoded, tree, write_folder, write_tar, write_zip
from tests.harness.small_caches import prepared

WRITERS: dict[str, Callable[[Path, Mapping[str, bytes]], Path]] = {
    "data.zip": write_zip,
    "data.tar": write_tar,
    "data.tar.gz": write_tar,
    "folder": write_folder,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_source_gives_same_rows(name: str, tmp_path: Path) -> None:
    cache = prepared(WRITERS[name](tmp_path / name, tree()), tmp_path / "cache")
    index = cache.index
    assert index.classes == CLASSES
    assert index.ids == tuple(sorted(index.ids))
    assert (index.splits.count("train"), index.splits.count("test")) == (30, 12)
    assert index.ids[0] == "test/Ants/00.jpg"
    assert index.hashes[0] == hashlib.sha256(encoded(500)).hexdigest()
    assert index.sizes[0] == (40, 30)
    assert cache.pixels.shape == (42, index.side, index.side, 3)
    reference = prepared(write_zip(tmp_path / "reference.zip", tree(root="")), tmp_path / "other")
    assert np.array_equal(cache.pixels, reference.pixels)


def test_s3_prefix_gives_same_rows(s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3_bucket}/pre/fix")
    for name, data in tree(train=3, test=1).items():
        store.put(name, data)
    cache = prepared(f"s3://{s3_bucket}/pre/fix", tmp_path / "cache")
    local = prepared(write_zip(tmp_path / "x.zip", tree(train=3, test=1)), tmp_path / "cache")
    assert cache.index.ids == local.index.ids
    assert np.array_equal(cache.pixels, local.pixels)


def test_test_folder_named_test(tmp_path: Path) -> None:
    assert prepared(write_zip(tmp_path / "x.zip", tree(test_name="test")), tmp_path).index.splits.count("test") == 12


@pytest.mark.soak
def test_demo_is_deterministic(tmp_path: Path) -> None:
    one, two = (prepared("demo:", tmp_path / name).index for name in "ab")
    assert one.digest == two.digest
    assert len(one.classes) == 4


def test_second_prepare_reuses_cache(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(f"s3://{s3_bucket}").put("x.zip", write_zip(tmp_path / "x.zip", tree()))
    first = prepared(f"s3://{s3_bucket}/x.zip", tmp_path / "cache")
    forbidden: Any = lambda *args, **kwargs: pytest.fail("work was done twice")  # noqa: E731
    monkeypatch.setattr(decode_all, "decode", forbidden)
    monkeypatch.setattr("inat_job.storage.s3.s3_store.S3Store.get", forbidden)
    assert prepared(f"s3://{s3_bucket}/x.zip", tmp_path / "cache") == first


def test_changed_object_is_a_new_source(s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3_bucket}")
    caches = []
    for train in (10, 11):
        store.put("x.zip", write_zip(tmp_path / "x.zip", tree(train=train)))
        caches.append(prepared(f"s3://{s3_bucket}/x.zip", tmp_path / "cache"))
    assert [len(cache.index.ids) for cache in caches] == [42, 45]


def test_max_broken(tmp_path: Path) -> None:
    files = tree() | {"some/where/train/Ants/03.jpg": b"broken", "some/where/val/Cats/00.jpg": b""}
    path = write_zip(tmp_path / "x.zip", files)
    with pytest.raises(BadDataError, match=r"2 of 42 images .* first test/Cats/00.jpg \(empty file\).* --max-broken"):
        prepared(path, tmp_path / "cache")
    cache = prepared(path, tmp_path / "cache", max_broken=0.05)
    assert [each["id"] for each in cache.index.rejected] == ["test/Cats/00.jpg", "train/Ants/03.jpg"]
    intact = prepared(write_zip(tmp_path / "intact.zip", tree()), tmp_path / "cache")
    kept = [row for row, name in enumerate(intact.index.ids) if name in cache.index.ids]
    assert np.array_equal(cache.pixels, intact.pixels[kept])
    assert load(cache.folder) == cache
    with pytest.raises(BadDataError, match="--max-broken"):
        prepared(path, tmp_path / "cache")


def test_damaged_zip_member_is_rejected(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    data = bytearray(path.read_bytes())
    at = data.index(encoded(5)) + 400
    data[at] ^= 0xFF
    path.write_bytes(data)
    index = prepared(path, tmp_path / "cache", max_broken=0.05).index
    assert [(each["id"], "CRC" in each["reason"]) for each in index.rejected] == [("train/Ants/05.jpg", True)]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_truncated_archive_is_bad_data(name: str, tmp_path: Path) -> None:
    writer = write_zip if name.endswith("zip") else write_tar
    path = writer(tmp_path / name, tree())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadDataError, match=name):
        prepared(path, tmp_path / "cache")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/train/Ants/1.jpg": b"x"}, "holds neither train/<Class>/ with"),
        ({"readme.txt": b"x"}, "but only readme.txt: unpack it"),
        (tree() | tree(root="b/"), "more than one data set"),
        (tree() | {"some/where/train/Dogs/1.jpg": encoded(1)}, "but only train has Dogs"),
        ({"train/A/1.jpg": encoded(1), "val/A/1.jpg": encoded(2)}, "one class"),
    ],
)
def test_wrong_layout_is_bad_data(files: dict[str, bytes], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=message):
        prepared(write_zip(tmp_path / "x.zip", files), tmp_path / "cache")


def test_images_in_both_splits(tmp_path: Path) -> None:
    files = tree() | {"some/where/val/Bees/00.jpg": encoded(1000)}
    assert prepared(write_zip(tmp_path / "x.zip", files), tmp_path).index.in_both_splits() == ("test/Bees/00.jpg",)


@pytest.mark.parametrize("damage", [PIXELS, INDEX])
def test_damaged_cache_is_rebuilt(damage: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    first = prepared(path, tmp_path / "cache")
    expected = first.pixels.copy()
    file = first.folder / damage
    file.write_bytes(b"\0" + file.read_bytes()[1:])
    assert np.array_equal(prepared(path, tmp_path / "cache").pixels, expected)


@pytest.mark.parametrize("old", ['"labels": [0', '"Ants"', '"format": 6', '"side": 64'])
def test_index_with_flipped_digit_is_rebuilt(old: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    intact = prepared(path, tmp_path / "cache")
    file = intact.folder / INDEX
    text = file.read_text()
    at = text.index(old) + len(old) - 1
    file.write_text(text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :])
    assert prepared(path, tmp_path / "cache").index == intact.index
    assert file.read_text() == text


def test_small_disk_fails_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(ConflictError, match="--cache-dir"):
        prepared(write_zip(tmp_path / "x.zip", tree()), tmp_path / "cache")


def test_stop_during_prepare(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    source = data_source.find(str(path), tmp_path / "cache", StorageOptions(), never)
    with pytest.raises(Preempted):
        build_cache.prepare(source, tmp_path / "cache", 32, 0.01, lambda: True)
    assert len(prepared(path, tmp_path / "cache").index.ids) == 42


def test_tar_is_not_buffered_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "x.tar.gz", tree(train=200))
    held = threading.Semaphore(0)
    read = 0
    original = tar_file._read_member

    def counted(archive: Any, member: Any) -> Any:
        nonlocal read
        read += 1
        return original(archive, member)

    def slow(data: bytes, side: int) -> Any:
        held.acquire()
        return np.zeros((side, side, 3), np.uint8), (1, 1)

    monkeypatch.setattr(tar_file, "_read_member", counted)
    monkeypatch.setattr(decode_all, "decode", slow)
    worker = threading.Thread(target=lambda: prepared(path, tmp_path / "cache"))
    worker.start()
    ahead, deadline = -1, time.monotonic() + 60
    while (read != ahead or not ahead) and time.monotonic() < deadline:
        ahead = read
        worker.join(timeout=0.3)
    held.release(1000)
    worker.join(timeout=60)
    assert 0 < ahead <= 70
    assert (
        json.loads(next((tmp_path / "cache" / "prepared").glob("*/index.json")).read_text())["index"]["rejected"] == []
    )


def _prepare_in_child(path: str, cache_dir: str, barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(prepared(path, Path(cache_dir)).index.pixels_sha256)


@pytest.mark.soak
@pytest.mark.parametrize("scheme", ["file", "s3"])
def test_two_jobs_prepare_at_once(scheme: str, tmp_path: Path, s3_bucket: str) -> None:
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


def test_complete_cache_needs_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    first = prepared(path, tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache" / "sources")
    (tmp_path / "cache" / "sources").touch()
    forbidden: Any = lambda *args: pytest.fail("a lock was taken")  # noqa: E731
    monkeypatch.setattr(build_cache, "lock", forbidden)
    assert prepared(path, tmp_path / "cache") == first


def test_complete_cache_may_be_read_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    first = prepared(path, tmp_path / "cache")
    original = os.open

    def read_only(file: Any, flags: int, *more: Any, **options: Any) -> int:
        if str(file).startswith(str(tmp_path / "cache")) and flags & (os.O_RDWR | os.O_WRONLY):
            raise PermissionError(errno.EACCES, "Permission denied")  # root may write anywhere
        return original(file, flags, *more, **options)

    monkeypatch.setattr(os, "open", read_only)
    assert prepared(path, tmp_path / "cache") == first
