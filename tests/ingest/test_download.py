"""An archive on a web server: how often it is downloaded, and when its bytes are trusted."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from inat_job.errors import BadDataError
from inat_job.ingest import data_source
from inat_job.signals import never
from inat_job.storage import StorageOptions
from tests.harness import loopback
from tests.harness.made_images import tree, write_zip
from tests.harness.small_caches import prepared


@pytest.fixture
def web() -> Iterator[SimpleNamespace]:
    """A web server that sends one archive for any path, and counts how often; `flips` damage the next answers."""
    served = SimpleNamespace(content=b"", version="", sent=0, uri="", flips=[])

    class Handler(loopback.Handler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(served.content)))
            if served.version:
                self.send_header("ETag", f'"{served.version}"')
            self.end_headers()
            if self.headers["Range"] != "bytes=0-0":
                served.sent += 1
                damaged = served.flips.pop() if served.flips else 0
                self.wfile.write(served.content[:-1] + bytes([served.content[-1] ^ damaged]))

    with loopback.serve(Handler) as url:
        served.uri = f"{url}/x.zip"
        yield served


def test_new_signature_is_same_archive(web: SimpleNamespace, tmp_path: Path) -> None:
    web.content, web.version = write_zip(tmp_path / "x.zip", tree()).read_bytes(), "1"
    for signature in "ab":
        cache = prepared(f"{web.uri}?X-Amz-Signature={signature}", tmp_path / "cache")
        assert cache.index.source == web.uri
    prepared(f"{web.uri}?X-Amz-Signature=c", tmp_path / "cache", size=64)
    assert web.sent == 1
    assert len(list((tmp_path / "cache" / "downloads").iterdir())) == 1


def test_unversioned_archive_is_downloaded_once_per_run(web: SimpleNamespace, tmp_path: Path) -> None:
    for run, train in enumerate((10, 11), start=1):
        web.content = write_zip(tmp_path / "x.zip", tree(train=train)).read_bytes()
        cache = prepared(web.uri, tmp_path / "cache")
        assert (web.sent, cache.index.splits.count("train")) == (run, 3 * train)


def test_damaged_download_is_repeated(web: SimpleNamespace, tmp_path: Path) -> None:
    web.content, web.version = write_zip(tmp_path / "x.zip", tree()).read_bytes(), "1"
    first = prepared(web.uri, tmp_path / "cache")
    (kept,) = (tmp_path / "cache" / "downloads").glob("*/*.zip")
    kept.write_bytes(web.content[:-1000] + bytes(1000))
    again = prepared(web.uri, tmp_path / "cache", size=64)
    assert (again.index.hashes, web.sent) == (first.index.hashes, 2)


def test_damaged_transfer_is_retried_until_sha256_matches(web: SimpleNamespace, tmp_path: Path) -> None:
    web.content, web.version = write_zip(tmp_path / "x.zip", tree()).read_bytes(), "1"
    uri = f"{web.uri}#sha256={hashlib.sha256(web.content).hexdigest()}"
    web.flips = [1, 1]
    assert len(prepared(uri, tmp_path / "cache").index.ids) == 42
    assert web.sent == 3
    web.flips = [1, 1, 1]
    with pytest.raises(BadDataError, match="it changed or is damaged"):
        prepared(uri, tmp_path / "other")
    assert len(prepared(uri, tmp_path / "other").index.ids) == 42


def test_later_sha256_replaces_damaged_download(web: SimpleNamespace, tmp_path: Path) -> None:
    web.content, web.version, web.flips = write_zip(tmp_path / "x.zip", tree()).read_bytes(), "1", [1]
    right = hashlib.sha256(web.content).hexdigest()
    data_source.find(web.uri, tmp_path / "cache", StorageOptions(), never).identify()
    assert prepared(f"{web.uri}#sha256={right}", tmp_path / "cache").index.digest == right


def test_archive_changed_since_hashing_is_bad_data(web: SimpleNamespace, tmp_path: Path) -> None:
    web.content, web.version = write_zip(tmp_path / "x.zip", tree()).read_bytes(), "1"
    source = data_source.find(web.uri, tmp_path / "cache", StorageOptions(), never)
    source.identify()
    web.content = write_zip(tmp_path / "x.zip", tree(train=11)).read_bytes()
    (kept,) = (tmp_path / "cache" / "downloads").glob("*/*.zip")
    kept.unlink()
    with pytest.raises(BadDataError, match=r"x.zip no longer has the sha256.* run the same command again"):
        source.open()


@pytest.mark.parametrize("text", ["[]", "5", "{}", '{"version": "1"}', "[" * 100_000])
def test_damaged_digest_note_is_ignored(web: SimpleNamespace, tmp_path: Path, text: str) -> None:
    web.content, web.version = write_zip(tmp_path / "x.zip", tree()).read_bytes(), "1"
    first = prepared(web.uri, tmp_path / "cache")
    (note,) = (tmp_path / "cache" / "sources").iterdir()
    note.write_text(text)
    assert prepared(web.uri, tmp_path / "cache") == first
    assert web.sent == 1
