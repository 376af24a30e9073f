"""Inspecting data sets everywhere: what is reported, what is refused, and how little is downloaded."""

import io
import os
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from inat_job.errors import BadDataError, NoPermissionError, PreconditionFailed, TransientError, UsageError
from inat_job.ingest import inspect
from inat_job.ingest.build_cache import prepare
from inat_job.ingest.data_source import find
from inat_job.ingest.inspect import summarise
from inat_job.signals import never
from inat_job.storage import StorageOptions, open_store
from inat_job.storage.local import LocalStore
from tests.harness.made_images import tree, write_folder, write_tar, write_zip
from tests.harness.web_sites import Site

OPTIONS = StorageOptions(retries=0)
FILES = tree(train=10, test=4)  # 3 classes
PIXELS = 3 * 14 * 64 * 64 * 3  # 42 squares of 64 pixels, for an input of 32


def inspected(uri: object, cache: Path) -> inspect.DataSetSummary:
    return summarise(str(uri), cache, 32, OPTIONS)


def test_local_images_are_counted(tmp_path: Path) -> None:
    (tmp_path / "alone").mkdir()
    archive = write_zip(tmp_path / "alone" / "x.zip", FILES)
    for uri in (archive, archive.parent, write_folder(tmp_path / "folder", FILES)):
        found = inspected(uri, tmp_path / "cache")
        assert "42 images of 3 classes" in found.text
        assert (found.fetched, found.decoded, found.doubt) == (0, PIXELS, "")
    assert not (tmp_path / "cache").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_repeated_names_in_a_zip_count_once(tmp_path: Path) -> None:
    with zipfile.ZipFile(write_zip(tmp_path / "x.zip", FILES), "a") as archive:
        for name in [*FILES][:5]:
            archive.writestr(name, FILES[name])
            archive.writestr(f"./{name}".replace("/", "//"), FILES[name])
    assert "42 images of 3 classes" in inspected(tmp_path / "x.zip", tmp_path / "cache").text


def test_remote_zip_is_counted_from_its_end(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspect, "_TAIL_BYTES", 8_000)
    data = write_zip(tmp_path / "x.zip", {"padding.bin": os.urandom(10**6), **FILES}).read_bytes()
    site.files["x.zip"], site.etags["x.zip"] = data, '"v"'
    found = inspected(f"{site.url}/x.zip", tmp_path / "cache")
    assert "42 images of 3 classes" in found.text
    assert (found.fetched, found.decoded) == (len(data), PIXELS)
    assert site.sent < 10_000


def test_s3_archive_and_loose_files_are_counted(s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3_bucket}")
    size = store.put("x.zip", write_zip(tmp_path / "x.zip", FILES)).size
    found = inspected(f"s3://{s3_bucket}/x.zip", tmp_path / "cache")
    assert ("42 images of 3 classes" in found.text, found.fetched) == (True, size)
    for name, content in FILES.items():
        store.put(f"loose/{name}", content)
    found = inspected(f"s3://{s3_bucket}/loose", tmp_path / "cache")
    assert ("42 images of 3 classes" in found.text, found.fetched, found.decoded) == (True, 0, PIXELS)


def test_uncountable_data_sets_say_why(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = inspected(write_tar(tmp_path / "x.tar", FILES), tmp_path)
    assert (found.decoded, bool(found.doubt)) == (None, True)
    site.files["x.zip"] = write_zip(tmp_path / "x.zip", FILES).read_bytes()  # without a version
    assert inspected(f"{site.url}/x.zip", tmp_path).fetched is None
    site.etags["x.zip"], site.ranges = '"v"', False
    found = inspected(f"{site.url}/x.zip", tmp_path)
    assert (found.decoded, bool(found.doubt)) == (None, True)
    monkeypatch.setattr(inspect, "MAX_LISTED", 5)
    found = inspected(write_folder(tmp_path / "folder", FILES), tmp_path)
    assert (found.decoded, " files or more" in found.text) == (None, True)
    monkeypatch.setattr(inspect, "_TAIL_BYTES", 200)  # less than the directory
    assert inspected(tmp_path / "x.zip", tmp_path).decoded is None


def test_decoded_archive_needs_no_space(tmp_path: Path) -> None:
    archive, cache = str(write_zip(tmp_path / "x.zip", FILES)), tmp_path / "cache"
    prepare(find(archive, cache, OPTIONS, never), cache, 32, 0.0, never)
    found = inspected(archive, cache)
    assert (found.fetched, found.decoded, "already" in found.text) == (0, 0, True)
    assert summarise(archive, cache, 64, OPTIONS).decoded


def test_downloaded_archive_needs_no_download(s3_bucket: str, tmp_path: Path) -> None:
    open_store(f"s3://{s3_bucket}").put("x.zip", write_zip(tmp_path / "x.zip", FILES))
    uri, cache = f"s3://{s3_bucket}/x.zip", tmp_path / "cache"
    assert find(uri, cache, OPTIONS, never).identify()
    assert inspected(uri, cache).fetched == 0


def test_demo_is_not_generated(tmp_path: Path) -> None:
    assert inspected("demo:", tmp_path / "cache").fetched == 0
    assert not (tmp_path / "cache").exists()


def test_missing_truncated_and_wrong_files_are_bad_data(tmp_path: Path, s3_bucket: str) -> None:
    intact = write_zip(tmp_path / "x.zip", FILES).read_bytes()
    (tmp_path / "cut.zip").write_bytes(intact[: len(intact) // 2])
    (tmp_path / "page.zip").write_bytes(b"<html>Not found</html>")
    (tmp_path / "empty").mkdir()
    (tmp_path / "nothing.zip").touch()
    open_store(f"s3://{s3_bucket}").put("nothing.zip", b"")
    other = write_zip(tmp_path / "other.zip", {"readme.txt": b"x"})
    missing = (
        tmp_path / "none.zip",
        f"s3://{s3_bucket}/none.zip",
        f"s3://{s3_bucket}/none",
        f"s3://{s3_bucket}x/x.zip",
    )
    missing += (tmp_path / "nothing.zip", f"s3://{s3_bucket}/nothing.zip")
    for uri in (tmp_path / "cut.zip", tmp_path / "page.zip", tmp_path / "empty", other, *missing):
        with pytest.raises(BadDataError):
            inspected(uri, tmp_path / "cache")
    with pytest.raises(UsageError):
        inspected("ftp://host/x.zip", tmp_path)


def test_forbidden_archive(site: Site, tmp_path: Path) -> None:
    site.files["x.zip"], site.statuses["x.zip"] = b"x", 403
    with pytest.raises(NoPermissionError):
        inspected(f"{site.url}/x.zip?X-Amz-Signature=secret", tmp_path)


def test_damaged_zip_directory(tmp_path: Path) -> None:
    good = write_zip(tmp_path / "x.zip", FILES).read_bytes()
    start = zipfile.ZipFile(io.BytesIO(good)).start_dir
    ends = []
    for at_byte in range(start, len(good), 37):
        bad = bytearray(good)
        bad[at_byte] ^= 0xFF
        (tmp_path / "bad.zip").write_bytes(bad)
        try:
            ends.append(inspected(tmp_path / "bad.zip", tmp_path / "cache").fetched)
        except BadDataError:
            ends.append(None)
    assert {*ends} == {None, 0}, "some damage is found, and some only by reading all of the archive"


def test_tar_is_sampled(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("empty"))
    assert inspected(tmp_path / "x.tar.gz", tmp_path).decoded is None


@pytest.mark.parametrize(("changes", "inspected_again"), [(1, True), (2, True), (3, False)])
def test_object_that_changes_is_inspected_again(
    changes: int, inspected_again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One wrong answer of a store is no reason to end a job."""
    path, left, read = write_zip(tmp_path / "x.zip", FILES), iter(range(changes)), LocalStore.read_range

    def read_range(store: LocalStore, *args: Any) -> bytes | None:
        if next(left, None) is not None:
            raise PreconditionFailed
        return read(store, *args)

    monkeypatch.setattr(LocalStore, "read_range", read_range)
    if inspected_again:
        assert "42 images" in inspected(path, tmp_path).text
    else:
        with pytest.raises(TransientError, match=r"x.zip changed 3 times while it was inspected: try again."):
            inspected(path, tmp_path)
