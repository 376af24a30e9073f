"""How `--data` is resolved and named."""

import hashlib
import threading
from pathlib import Path

import pytest

from inat_job.data.cache_index import Cache
from inat_job.errors import BadDataError, Preempted, UsageError
from inat_job.ingest import build_cache, data_source
from inat_job.signals import never
from inat_job.storage import StorageOptions, open_store
from inat_job.storage.s3.s3_store import S3Store
from tests.harness.made_images import tree, write_folder, write_zip


def prepared(uri: object, cache_dir: Path, size: int = 32) -> Cache:
    source = data_source.find(str(uri), cache_dir, StorageOptions(retries=0), never)
    return build_cache.prepare(source, cache_dir, size, 0.01, never)


def test_index_source_is_the_named_uri(tmp_path: Path) -> None:
    one, two = (write_zip(tmp_path / name, tree()) for name in ("one.zip", "two.zip"))
    caches = [prepared(path, tmp_path / "cache") for path in (one, two)]
    assert caches[0].folder == caches[1].folder
    assert [cache.index.source for cache in caches] == [str(one), str(two)]
    assert prepared("demo:", tmp_path / "cache").index.source == "demo:"


def test_message_names_this_runs_source(tmp_path: Path) -> None:
    files = tree() | {"some/where/train/Ants/03.jpg": b"broken"}
    one, two = (write_zip(tmp_path / name, files) for name in ("one.zip", "two.zip"))
    source = data_source.find(str(one), tmp_path / "cache", StorageOptions(), never)
    build_cache.prepare(source, tmp_path / "cache", 32, 0.1, never)
    with pytest.raises(BadDataError, match="two.zip cannot be read"):
        prepared(two, tmp_path / "cache")


def test_file_uri(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x y.zip", tree())
    folder = write_folder(tmp_path / "loose", tree())
    for uri, shown in (("x%20y.zip", path), ("loose", folder)):
        assert prepared(f"file://{tmp_path}/{uri}", tmp_path / "cache").index.source == str(shown)


def test_missing_archive_is_bad_data(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match=r"nowhere.zip does not exist"):
        prepared(tmp_path / "nowhere.zip", tmp_path)
    with pytest.raises(UsageError, match="use s3://"):
        prepared("ftp://host/x.zip", tmp_path)


def test_folder_with_one_archive(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / ".DS_Store").touch()
    path = write_zip(tmp_path / "in" / "x.zip", tree())
    assert prepared(tmp_path / "in", tmp_path / "cache").index.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_sha256_in_uri_is_verified(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    assert prepared(f"{path}#sha256={right}", tmp_path / "cache").index.digest == right
    with pytest.raises(BadDataError, match="#sha256="):
        prepared(f"{path}#sha256={'0' * 64}", tmp_path / "cache")
    with pytest.raises(UsageError, match="64 hexadecimal"):
        prepared(f"{path}#sha256=12", tmp_path / "cache")
    folder = write_folder(tmp_path / "loose", tree())
    with pytest.raises(BadDataError, match="#sha256="):
        prepared(f"{folder}#sha256={'0' * 64}", tmp_path / "cache")


@pytest.mark.parametrize("key", ["a#b.zip", "#.zip", "a#sha.zip", "50%25 off?.zip"])
def test_archive_under_an_odd_key(key: str, s3_bucket: str, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    open_store(f"s3://{s3_bucket}").put(key, path)
    for mark in ("", f"#sha256={digest}"):
        assert prepared(f"s3://{s3_bucket}/{key}{mark}", tmp_path / "cache").index.digest == digest


def test_loose_files_under_odd_keys(s3_bucket: str, tmp_path: Path) -> None:
    store = open_store(f"s3://{s3_bucket}/set")
    for name, data in tree(root="").items():
        store.put(name.replace("Ants/", "Ants/#1/"), data)
    assert len(prepared(f"s3://{s3_bucket}/set", tmp_path / "cache").index.classes) == 3


def test_stop_while_a_loose_file_does_not_come(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(f"s3://{s3_bucket}/some").put("train/Ants/1.jpg", b"x")
    asked, released = threading.Event(), threading.Event()

    def silent(store: S3Store, key: str) -> bytes:
        asked.set()
        assert released.wait(20)
        return b"late"

    monkeypatch.setattr(S3Store, "read", silent)
    found = data_source.find(f"s3://{s3_bucket}/some", tmp_path, StorageOptions(), asked.is_set)
    ((_, load),) = found.open().load(["train/Ants/1.jpg"])
    with pytest.raises(Preempted):
        load()
    released.set()


def test_local_archive_with_a_number_sign(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "set #2.zip", tree())
    assert prepared(path, tmp_path / "cache").index.source == str(path)


@pytest.mark.parametrize("name", ["x.tar.xz", "x.7z", "x.RAR", "x.tar.bz2", "x.tar.zst", "x.gz"])
@pytest.mark.parametrize("start", ["s3://bucket/", "https://host/", "/data/"])
def test_archive_of_another_kind_is_named(start: str, name: str) -> None:
    query = "?sig=secret" if start.startswith("https") else ""
    with pytest.raises(UsageError, match=r"\.\w+ files are not read: pack it as .zip") as caught:
        data_source.parse_uri(start + name + query)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("mark", ["#sha256=12", "#sha265=" + "0" * 64, "#" + "0" * 64, "#md5=x"])
def test_mistaken_hash_is_refused(mark: str) -> None:
    for uri in ("s3://bucket/x.zip", "x.zip", "https://host/x.zip"):
        with pytest.raises(UsageError, match="64 hexadecimal"):
            data_source.parse_uri(uri + mark)
