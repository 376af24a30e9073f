"""A remote archive is decoded while it is downloaded, and no fault on the way changes the result."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inat_job.data.cache_index import PIXELS, Cache
from inat_job.data.layout import ImageFile
from inat_job.errors import BadDataError, ConflictError, NoPermissionError, Preempted, TransientError
from inat_job.ingest import build_cache, data_source, decode_all
from inat_job.ingest.decode_all import ROWS
from inat_job.signals import Stop, never
from inat_job.storage import StorageOptions, partial_download
from inat_job.storage.partial_download import ChunkPlan
from tests.harness.made_images import encoded, tree, write_tar, write_zip
from tests.harness.web_sites import Site

ROOT = Path(__file__).parents[2]
CHUNK = 2000
COUNT = 42
WAIT_S = 20


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial_download, "plan_chunks", lambda size: ChunkPlan(size, CHUNK))


@pytest.fixture
def served(site: Site, tmp_path: Path) -> Callable[..., bytes]:
    """Puts an archive on the server; returns its bytes."""

    def serve(name: str = "x.zip", etag: str = '"1"', **tree_of: Any) -> bytes:
        write = write_zip if name.endswith("zip") else write_tar
        site.files[name] = write(tmp_path / name, tree(**tree_of)).read_bytes()
        site.etags[name] = etag
        return site.files[name]

    return serve


def prepared(
    uri: str, cache_dir: Path, stop: Stop = never, on_downloaded: Callable[[], None] = lambda: None, threads: int = 2
) -> Cache:
    source = data_source.find(uri, cache_dir, StorageOptions(retries=2, threads=threads), stop)
    return build_cache.prepare(source, cache_dir, 32, 0.05, stop, on_downloaded)


def content(cache: Cache) -> tuple[bytes, tuple[str, ...], str]:
    assert sorted(path.name for path in cache.folder.iterdir()) == ["index.json", PIXELS]
    assert not list(cache.folder.parent.glob("*.tmp"))
    return (cache.folder / PIXELS).read_bytes(), cache.index.hashes, cache.index.digest


def start(asked: str) -> int:
    """The first byte of a Range header."""
    return int(asked.removeprefix("bytes=").split("-")[0])


def until(happened: Callable[[], bool]) -> bool:
    """Wait for an event; returns whether it happened in time."""
    end = time.monotonic() + WAIT_S
    while not happened() and time.monotonic() < end:
        time.sleep(0.01)
    return happened()


def hold_second_half(site: Site, size: int, happened: Callable[[], bool]) -> list[bool]:
    """Serve the second half of an archive, except its end, only after an event; returns whether it happened in time."""
    in_time: list[bool] = []

    def before(asked: str) -> None:
        if size // 2 < start(asked) < size - 4 * CHUNK:
            in_time.append(until(happened))

    site.before = before
    return in_time


def test_refused_images_are_not_decoded(
    site: Site, served: Callable[..., bytes], tmp_path: Path, decoded: list[int]
) -> None:
    def refuse(images: Sequence[ImageFile]) -> None:
        raise ConflictError(f"{len(images)} are too few")

    served()
    source = data_source.find(f"{site.url}/x.zip", tmp_path, StorageOptions(), never)
    with pytest.raises(ConflictError, match=f"{COUNT} are too few"):
        build_cache.prepare(replace(source, check_listed=refuse), tmp_path, 32, 0.05, never)
    assert decoded == []


def test_decoding_starts_before_download_ends(
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
    decoded: list[int],
) -> None:
    size = len(served())
    in_time = hold_second_half(site, size, lambda: len(decoded) >= 10)
    decoded_when_downloaded: list[int] = []
    cache = prepared(
        f"{site.url}/x.zip", tmp_path / "cache", on_downloaded=lambda: decoded_when_downloaded.append(len(decoded))
    )
    assert in_time
    assert all(in_time)
    assert len(decoded) == COUNT
    assert decoded_when_downloaded
    assert content(cache) == content(prepared(str(tmp_path / "x.zip"), tmp_path / "local"))
    assert site.sent == size + size - zipfile.ZipFile(tmp_path / "x.zip").start_dir  # which no CRC protects


@pytest.mark.parametrize("etag", ['"1"', "md5"])
@pytest.mark.parametrize("first", range(0, 22, 3))
def test_flipped_bytes_are_fetched_again_without_a_digest(
    site: Site, served: Callable[..., bytes], tmp_path: Path, etag: str, first: int
) -> None:
    data = served()
    site.etags["x.zip"] = f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"' if etag == "md5" else etag
    site.faults = [""] * first + ["flip"] + [""] * 4 + ["flip"]
    cache = prepared(f"{site.url}/x.zip", tmp_path / "cache")
    assert cache.index.rejected == ()
    assert content(cache) == content(prepared(str(tmp_path / "x.zip"), tmp_path / "local"))
    [kept] = (tmp_path / "cache" / "downloads").glob("*/*.zip")
    assert kept.read_bytes() == data
    assert [json.loads(note.read_text())["digest"] for note in (tmp_path / "cache" / "sources").iterdir()] == [
        hashlib.sha256(data).hexdigest()
    ]


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_flipped_byte_of_a_server_without_ranges_is_fetched_again(
    site: Site, served: Callable[..., bytes], tmp_path: Path, name: str
) -> None:
    served(name)
    site.ranges, site.faults = False, ["flip"]
    cache = prepared(f"{site.url}/{name}", tmp_path / "cache")
    assert cache.index.rejected == ()
    assert content(cache) == content(prepared(str(tmp_path / name), tmp_path / "local"))


@pytest.mark.parametrize("ranges", [True, False])
def test_links_planted_in_a_shared_cache_are_not_followed(
    site: Site, served: Callable[..., bytes], tmp_path: Path, ranges: bool
) -> None:
    size, cache_dir, uri = len(served()), tmp_path / "cache", f"{site.url}/x.zip"
    site.ranges = ranges
    source = data_source.find(uri, cache_dir, StorageOptions(), never)
    assert source.download
    path, side = source.download.path, build_cache.cache_side(32)
    draft = build_cache._folder(cache_dir, source.draft_key, side, source.arrangement)
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.parent.mkdir(parents=True)
    draft.parent.mkdir(parents=True)
    (unfinished := draft.with_suffix(".tmp")).mkdir()
    part = path.with_name(f"{path.name}.part")
    journal = json.dumps({"version": '"1"', "size": size, "chunk": CHUNK}) + "\n"
    part.with_name(f"{part.name}.json").write_text(f"{journal}[0, 8, {zlib.crc32(b'precious')}]\n")
    for link in (
        *(
            part,
            part.with_name(f"{part.name}.json.tmp"),
            path.with_name(f"{path.name}.lock"),
            draft.with_suffix(".lock"),
        ),
        *(
            unfinished / PIXELS,
            unfinished / ROWS,
            (unfinished / ROWS).with_suffix(".new"),
            draft.parent / "publish.lock",
        ),
    ):
        link.symlink_to(victim)
    cache = prepared(uri, cache_dir)
    assert victim.read_bytes() == b"precious"
    assert content(cache) == content(prepared(str(tmp_path / "x.zip"), tmp_path / "local"))


def test_folders_planted_as_links_are_replaced(site: Site, served: Callable[..., bytes], tmp_path: Path) -> None:
    served()
    source = data_source.find(f"{site.url}/x.zip", tmp_path / "cache", StorageOptions(), never)
    assert source.download
    draft = build_cache._folder(
        tmp_path / "cache", source.draft_key, build_cache.cache_side(32), source.arrangement
    ).with_suffix(".tmp")
    (victim := tmp_path / "victim").mkdir()
    for link in (source.download.path.parent, draft):
        link.parent.mkdir(parents=True)
        link.symlink_to(victim)
    prepared(f"{site.url}/x.zip", tmp_path / "cache")
    assert list(victim.iterdir()) == []


def test_digest_of_an_archive_with_damage_is_not_noted(
    site: Site, served: Callable[..., bytes], tmp_path: Path
) -> None:
    data = bytearray(served())
    with zipfile.ZipFile(tmp_path / "x.zip") as archive:
        member = archive.infolist()[-1]
    data[member.header_offset + 30 + len(member.filename) + 100] ^= 1
    site.files["x.zip"] = bytes(data)
    cache = prepared(f"{site.url}/x.zip", tmp_path / "cache")
    assert [each["reason"] for each in cache.index.rejected] == ["damaged in the archive: Bad CRC-32"]
    assert not (tmp_path / "cache" / "sources").exists()
    assert prepared(f"{site.url}/x.zip", tmp_path / "cache").index == cache.index


@pytest.mark.soak
def test_sigkill_loses_no_bytes_and_no_rows(
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
    decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # 1 MiB chunks, as in the other process
    size = len(served(train=800))
    killed, third = threading.Event(), size // 3
    site.before = lambda asked: killed.wait(WAIT_S) if third < start(asked) < 2 * third else None
    cache_dir = tmp_path / "cache"
    command = ["prepare", "--data", f"{site.url}/x.zip", "--cache-dir", str(cache_dir), "--image-size", "32"]
    child = subprocess.Popen([sys.executable, str(ROOT / "entrypoint.py"), *command], stdout=subprocess.DEVNULL)
    try:
        assert until(lambda: any(path.stat().st_size > 8000 for path in cache_dir.glob(f"prepared/*.tmp/{ROWS}")))
    finally:
        child.kill()
        child.wait()
    assert not list(cache_dir.glob("downloads/*/*.zip"))  # the download had not ended
    killed.set()
    sent = site.sent
    seen: list[int] = []
    original = decode_all.decode
    monkeypatch.setattr(decode_all, "decode", lambda data, side: seen.append(1) or original(data, side))
    cache = prepared(f"{site.url}/x.zip", cache_dir)
    assert site.sent < size + sent
    assert 0 < len(seen) < len(cache.index.ids) - 30
    assert content(cache) == content(prepared(str(tmp_path / "x.zip"), tmp_path / "local"))


def test_object_changed_during_download(
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
    decoded: list[int],
) -> None:
    size = len(served(train=11))
    new, old = (served(train=train) for train in (11, 10))

    def before(asked: str) -> None:
        if size // 2 < start(asked) < size - 4 * CHUNK and until(lambda: len(decoded) >= 5):
            site.files["x.zip"], site.etags["x.zip"] = new, '"2"'

    site.before = before
    cache = prepared(f"{site.url}/x.zip", tmp_path / "cache")
    assert content(cache)[2] == hashlib.sha256(new).hexdigest() != hashlib.sha256(old).hexdigest()
    assert len(cache.index.ids) == 45
    site.before = lambda asked: None
    (tmp_path / "new.zip").write_bytes(new)
    assert content(cache) == content(prepared(str(tmp_path / "new.zip"), tmp_path / "local"))


def with_damaged_image(data: bytes, at: int) -> bytes:
    """The same archive with another image in place of one, of the same length, its CRC corrected."""
    good, bad = encoded(at), bytearray(encoded(at))
    bad[-30] ^= 1
    crc, other = (zlib.crc32(each).to_bytes(4, "little") for each in (good, bytes(bad)))
    assert good in data
    return data.replace(good, bytes(bad)).replace(crc, other)


def test_rows_from_damaged_bytes_are_discarded(
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
    decoded: list[int],
) -> None:
    right = served()
    site.files["x.zip"] = with_damaged_image(right, 1003)
    fetched: list[str] = []

    def before(asked: str) -> None:
        fetched.append(asked)
        if fetched.count("bytes=0-1999") > 1:
            site.files["x.zip"] = right

    site.before = before
    cache = prepared(f"{site.url}/x.zip#sha256={hashlib.sha256(right).hexdigest()}", tmp_path / "cache")
    assert content(cache) == content(prepared(str(tmp_path / "x.zip"), tmp_path / "local"))


def test_earlier_rows_are_checked_against_their_bytes(
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
    decoded: list[int],
) -> None:
    right = served()
    site.files["x.zip"] = with_damaged_image(right, 3)
    stopped = threading.Event()
    hold_second_half(site, len(right), lambda: len(decoded) >= 10 and (stopped.set() or True))
    with pytest.raises(Preempted):
        prepared(f"{site.url}/x.zip", tmp_path / "cache", stopped.is_set)
    rows = next((tmp_path / "cache").glob(f"prepared/*.tmp/{ROWS}")).read_text().splitlines()[1:]
    assert hashlib.sha256(encoded(3)).hexdigest() not in {json.loads(row.partition(" ")[2])[1] for row in rows}
    for path in (tmp_path / "cache" / "downloads").glob("*/*"):
        path.unlink()
    site.files["x.zip"], site.before = right, lambda asked: None
    decoded.clear()
    cache = prepared(f"{site.url}/x.zip", tmp_path / "cache")
    assert content(cache) == content(prepared(str(tmp_path / "x.zip"), tmp_path / "other", threads=1))
    assert len(decoded) < 2 * COUNT


def test_stop_ends_download(site: Site, served: Callable[..., bytes], tmp_path: Path) -> None:
    size = len(served())
    stopped = threading.Event()
    site.before = lambda asked: stopped.wait(WAIT_S) if start(asked) > size // 2 else None  # type: ignore[assignment, return-value]
    threading.Timer(0.5, stopped.set).start()
    began = time.monotonic()
    with pytest.raises(Preempted):
        prepared(f"{site.url}/x.zip", tmp_path / "cache", stopped.is_set)
    assert time.monotonic() - began < 5
    assert until(lambda: not [each for each in threading.enumerate() if each.name == "pull"])


@pytest.mark.parametrize(("status", "error"), [(403, NoPermissionError), (404, BadDataError), (503, TransientError)])
def test_download_error_is_raised(
    status: int,
    error: type[Exception],
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
    decoded: list[int],
) -> None:
    size = len(served())

    def before(asked: str) -> None:
        if size // 2 < start(asked) < size - 4 * CHUNK and until(lambda: len(decoded) >= 5):
            site.statuses["x.zip"] = status

    site.before = before
    with pytest.raises(error, match=r"x\.zip"):
        prepared(f"{site.url}/x.zip", tmp_path / "cache")
    site.statuses.clear()
    site.before = lambda asked: None
    assert len(prepared(f"{site.url}/x.zip", tmp_path / "cache").index.ids) == COUNT


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda data: data.replace(b"/train/", b"/other/"),
        lambda data: data.replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"),
        lambda data: data[:-22] + bytes(22),
        lambda data: b"",
    ],
)
def test_damaged_remote_archive_fails_like_local(
    spoil: Callable[[bytes], bytes],
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    site.files["x.zip"] = spoil(served())
    (tmp_path / "x.zip").write_bytes(site.files["x.zip"])
    messages = []
    for uri in (f"{site.url}/x.zip", str(tmp_path / "x.zip")):
        with pytest.raises(BadDataError) as caught:
            prepared(uri, tmp_path / "cache")
        messages.append(str(caught.value).split("x.zip", 1)[1])
    assert messages[0] == messages[1]


def test_server_without_ranges(
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    served()
    site.ranges = False
    cache = prepared(f"{site.url}/x.zip", tmp_path / "cache")
    assert content(cache) == content(prepared(str(tmp_path / "x.zip"), tmp_path / "local"))


def test_same_images_from_two_urls_share_cache(
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    served()
    served("y.zip")
    one, two = (prepared(f"{site.url}/{name}.zip", tmp_path / "cache") for name in "xy")
    assert one.folder == two.folder
    assert content(one) == content(two)


def test_repeated_download_is_hashed_again(
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    right = served()
    prepared(f"{site.url}/x.zip", tmp_path / "cache")
    for folder in ("downloads", "prepared"):
        shutil.rmtree(tmp_path / "cache" / folder)
    site.files["x.zip"] = with_damaged_image(right, 3)
    with pytest.raises(BadDataError, match="no longer has the sha256"):
        prepared(f"{site.url}/x.zip", tmp_path / "cache")
