"""A web server as a store: its statuses, its ranges, its versions."""

import base64
import hashlib
import time
from pathlib import Path

import pytest

from inat_job.errors import BadDataError, ConflictError, NoPermissionError, TransientError
from inat_job.storage import StorageOptions, open_store
from tests.harness.web_sites import Site
from tests.storage.one_file import DATA, OPTIONS, SHA256, get_file, quick  # noqa: F401  # a fixture


def test_stat_and_read(site: Site) -> None:
    store = open_store(site.url + "/", OPTIONS)
    entry = store.stat("x.zip")
    assert entry is not None
    assert (entry.size, entry.version) == (len(DATA), '"v1"')
    assert store.read("x.zip") == DATA
    assert store.stat("missing") is None
    assert store.stat("") is None
    with pytest.raises(BadDataError, match="missing does not exist"):
        store.read("missing")


@pytest.mark.parametrize("fault", ["truncate", "reset", "503"])
def test_retries_without_ranges(site: Site, tmp_path: Path, fault: str) -> None:
    site.ranges = False
    site.faults = [fault, fault]
    get_file(site, tmp_path / "x", sha256=SHA256)
    assert (tmp_path / "x").read_bytes() == DATA


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize("etag", ['"v1"', 'W/"v1"', ""])
@pytest.mark.parametrize("ranges", [True, False])
def test_get_from_every_kind_of_server(site: Site, tmp_path: Path, ranges: bool, lengths: bool, etag: str) -> None:
    site.ranges, site.lengths, site.etags["x.zip"] = ranges, lengths, etag
    reported: list[tuple[int, int]] = []
    entry = open_store(site.url, OPTIONS).get(
        "x.zip", tmp_path / "x", sha256=SHA256, progress=lambda *a: reported.append(a)
    )
    assert entry.size == len(DATA)
    assert (tmp_path / "x").read_bytes() == DATA
    assert not reported or reported[-1] == (len(DATA), len(DATA))


def test_answers_without_the_etag_that_the_first_had(site: Site, tmp_path: Path) -> None:
    site.faults = ["untagged"] * 2
    get_file(site, tmp_path / "x", sha256=SHA256)
    assert (tmp_path / "x").read_bytes() == DATA
    site.faults = ["untagged"] * 999
    with pytest.raises(TransientError, match="x.zip: the answer has no ETag, though the first one had"):
        get_file(site, tmp_path / "y", sha256=SHA256)


@pytest.mark.parametrize("ranges", [True, False])
def test_read_range_sends_only_the_range(site: Site, ranges: bool) -> None:
    site.files["x.zip"], site.etags["x.zip"], site.ranges = bytes(range(256)) * 40_000, '"v"', ranges
    store = open_store(site.url)
    entry = store.stat("x.zip")
    assert entry
    before = site.sent
    assert store.read_range(entry, 256, 259) == (b"\0\1\2" if ranges else None)
    assert site.sent - before == (3 if ranges else 0) or not ranges


MD5 = hashlib.md5(DATA, usedforsecurity=False)
GOOGLE = {"x-goog-hash": f"crc32c=AAAAAA==, md5={base64.b64encode(MD5.digest()).decode()}"}
REPR = {"Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(SHA256)).decode()}:"}


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize(
    ("etag", "more"),
    [(f'"{MD5.hexdigest()}"', {}), ('"v1"', GOOGLE), ('"v1"', REPR)],
    ids=["MD5", "Google", "Repr-Digest"],
)
def test_flipped_byte_is_found_without_a_digest(
    site: Site, tmp_path: Path, etag: str, more: dict[str, str], ranges: bool
) -> None:
    site.etags["x.zip"], site.more, site.ranges, site.faults = etag, more, ranges, ["flip"]
    get_file(site, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA
    site.faults = ["flip"]
    assert open_store(site.url, OPTIONS).read("x.zip") == DATA


def test_object_without_its_stated_checksum_is_bad_data(site: Site, tmp_path: Path) -> None:
    site.more = GOOGLE
    site.files["x.zip"] = DATA[:-1] + b"?"
    with pytest.raises(BadDataError, match=r"x.zip does not have the checksum that its store states: upload it again"):
        get_file(site, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_etag_that_is_no_checksum_is_overruled_by_a_second_download(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site.etags["x.zip"] = f'"{"0" * 32}"'
    get_file(site, tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA
    assert f"use #sha256={SHA256}" in capsys.readouterr().out


def test_get_empty_object(site: Site, tmp_path: Path) -> None:
    site.files["empty"] = b""
    get_file(site, tmp_path / "empty", "empty", sha256=hashlib.sha256(b"").hexdigest())
    assert (tmp_path / "empty").read_bytes() == b""


def test_retry_after(site: Site) -> None:
    site.retry_after = "1"
    site.faults = ["429"]
    start = time.monotonic()
    assert open_store(site.url, OPTIONS).read("x.zip") == DATA
    assert time.monotonic() - start >= 1.0


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, NoPermissionError),
        (403, NoPermissionError),
        (404, BadDataError),
        (410, BadDataError),
        (400, ConflictError),
    ],
)
def test_http_status_to_error(site: Site, tmp_path: Path, status: int, kind: type[Exception]) -> None:
    site.statuses["x.zip"] = status
    for verb in (
        lambda: open_store(site.url).read("x.zip?sig=s3cret"),
        lambda: get_file(site, tmp_path / "x", "x.zip?sig=s3cret"),
    ):
        with pytest.raises(kind, match=f"HTTP {status}") as caught:
            verb()
        assert "s3cret" not in str(caught.value)


def test_stat_403_is_no_permission(site: Site) -> None:
    site.statuses["x.zip"] = 403
    with pytest.raises(NoPermissionError):
        open_store(site.url).stat("x.zip")


def test_connection_refused(tmp_path: Path, closed_port: int, site: Site) -> None:
    store = open_store(f"http://user:s3cret@127.0.0.1:{closed_port}/d", StorageOptions(retries=1))
    for verb in (lambda: store.stat("x"), lambda: store.read("x"), lambda: store.get("x", tmp_path / "x")):
        with pytest.raises(TransientError, match="can't be reached") as caught:
            verb()
        assert "s3cret" not in str(caught.value)


def test_unknown_host(tmp_path: Path) -> None:
    with pytest.raises(TransientError, match=r"nowhere\.invalid"):
        open_store("https://nowhere.invalid/d", StorageOptions(retries=0)).stat("x")


def test_login_is_sent_but_not_shown(site: Site) -> None:
    store = open_store(site.url.replace("http://", "http://me:s3cret@"), OPTIONS)
    assert store.read("x.zip") == DATA
    assert site.headers[-1]["Authorization"] == "Basic bWU6czNjcmV0"
    assert "s3cret" not in store.uri


def test_query_is_sent_and_names_are_quoted(site: Site) -> None:
    site.files["a%20b.zip"] = b"odd"
    assert open_store(site.url, OPTIONS).read("a b.zip?X-Sig=a%2Fb&c=d") == b"odd"
    assert site.requests[-1][0] == "/a%20b.zip?X-Sig=a%2Fb&c=d"


def test_https_is_read_only() -> None:
    store = open_store("https://host.invalid/dir")
    for verb in (lambda: store.put("a", b""), lambda: store.delete("a"), lambda: list(store.list())):
        with pytest.raises(ConflictError):
            verb()
