"""An archive from afar is decoded while it lands, and what befalls it on the way changes nothing of it."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inat_job.data.cache_index import PIXELS, Cache
from inat_job.errors import BadDataError, NoPermissionError, Preempted, TransientError
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
    """Puts an archive on the server; gives its bytes."""

    def serve(name: str = "x.zip", etag: str = '"1"', **tree_of: Any) -> bytes:
        write = write_zip if name.endswith("zip") else write_tar
        site.files[name] = write(tmp_path / name, tree(**tree_of)).read_bytes()
        site.etags[name] = etag
        return site.files[name]

    return serve


def prepared(
    uri: str, cache_dir: Path, stop: Stop = never, whole: Callable[[], None] = lambda: None, threads: int = 2
) -> Cache:
    source = data_source.find(uri, cache_dir, StorageOptions(retries=2, threads=threads), stop)
    return build_cache.prepare(source, cache_dir, 32, 0.05, stop, whole)


def content(cache: Cache) -> tuple[bytes, tuple[str, ...], str]:
    assert sorted(path.name for path in cache.folder.iterdir()) == ["index.json", PIXELS]
    assert not list(cache.folder.parent.glob("*.tmp"))
    return (cache.folder / PIXELS).read_bytes(), cache.index.hashes, cache.index.digest


def start(asked: str) -> int:
    return int(asked.removeprefix("bytes=").split("-")[0])


def until(happened: Callable[[], bool]) -> bool:
    """Whether it happens in time."""
    end = time.monotonic() + WAIT_S
    while not happened() and time.monotonic() < end:
        time.sleep(0.01)
    return happened()


def hold_folder(site: Site, size: int, happened: Callable[[], bool]) -> list[bool]:
    """Serve the second half of an archive, but for its end, only when it has happened; gives whether it did in time."""
    held: list[bool] = []

    def before(asked: str) -> None:
        if size // 2 < start(asked) < size - 4 * CHUNK:
            held.append(until(happened))

    site.before = before
    return held


def test_images_are_decoded_before_the_archive_is_whole(
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
    decoded: list[int],
) -> None:
    size = len(served())
    held = hold_folder(site, size, lambda: len(decoded) >= 10)
    when: list[int] = []
    cache = prepared(f"{site.url}/x.zip", tmp_path / "cache", whole=lambda: when.append(len(decoded)))
    assert held
    assert all(held)
    assert len(decoded) == COUNT
    assert when
    assert content(cache) == content(prepared(str(tmp_path / "x.zip"), tmp_path / "local"))
    assert site.sent == size


def test_a_killed_job_loses_neither_bytes_nor_rows(
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
    decoded: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.undo()  # a chunk is a MiB, as it is in the other process
    size = len(served(train=800))
    killed, third = threading.Event(), size // 3
    site.before = lambda asked: killed.wait(WAIT_S) if third < start(asked) < 2 * third else None
    cache_dir = tmp_path / "cache"
    command = ["prepare", "--data", f"{site.url}/x.zip", "--cache-dir", str(cache_dir), "--image-size", "32"]
    child = subprocess.Popen([sys.executable, str(ROOT / "entrypoint.py"), *command], stdout=subprocess.DEVNULL)
    assert until(lambda: any(path.stat().st_size > 8000 for path in cache_dir.glob(f"prepared/*.tmp/{ROWS}")))
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not list(cache_dir.glob("downloads/*/*.zip"))  # it was on its way still
    killed.set()
    sent = site.sent
    seen: list[int] = []
    original = decode_all.decode
    monkeypatch.setattr(decode_all, "decode", lambda data, side: seen.append(1) or original(data, side))
    cache = prepared(f"{site.url}/x.zip", cache_dir)
    assert site.sent < size + sent
    assert 0 < len(seen) < len(cache.index.ids) - 30
    assert content(cache) == content(prepared(str(tmp_path / "x.zip"), tmp_path / "local"))


def test_an_object_that_changes_on_the_way_is_the_new_one(
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


def damage(data: bytes, at: int) -> bytes:
    """The same archive with another image in place of one, of the same length, its CRC mended."""
    good, bad = encoded(at), bytearray(encoded(at))
    bad[-30] ^= 1
    crc, other = (zlib.crc32(each).to_bytes(4, "little") for each in (good, bytes(bad)))
    assert good in data
    return data.replace(good, bytes(bad)).replace(crc, other)


def test_what_came_of_damaged_bytes_is_not_kept(
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
    decoded: list[int],
) -> None:
    right = served()
    site.files["x.zip"] = damage(right, 1003)
    fetched: list[str] = []

    def before(asked: str) -> None:
        fetched.append(asked)
        if fetched.count("bytes=0-1999") > 1:
            site.files["x.zip"] = right

    site.before = before
    cache = prepared(f"{site.url}/x.zip#sha256={hashlib.sha256(right).hexdigest()}", tmp_path / "cache")
    assert content(cache) == content(prepared(str(tmp_path / "x.zip"), tmp_path / "local"))


def test_rows_of_an_earlier_job_are_believed_by_the_bytes_that_they_came_of(
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
    decoded: list[int],
) -> None:
    right = served()
    site.files["x.zip"] = damage(right, 3)
    stopped = threading.Event()
    hold_folder(site, len(right), lambda: len(decoded) >= 10 and (stopped.set() or True))
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


def test_a_stop_ends_the_pull_too(site: Site, served: Callable[..., bytes], tmp_path: Path) -> None:
    size = len(served())
    stopped = threading.Event()
    site.before = lambda asked: stopped.wait(WAIT_S) if start(asked) > size // 2 else None  # type: ignore[assignment, return-value]
    threading.Timer(0.5, stopped.set).start()
    begun = time.monotonic()
    with pytest.raises(Preempted):
        prepared(f"{site.url}/x.zip", tmp_path / "cache", stopped.is_set)
    assert time.monotonic() - begun < 5
    assert until(lambda: not [each for each in threading.enumerate() if each.name == "pull"])


@pytest.mark.parametrize(("status", "error"), [(403, NoPermissionError), (404, BadDataError), (503, TransientError)])
def test_what_ends_the_pull_is_told(
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
def test_an_archive_that_is_none_is_told_as_if_it_were_here(
    spoil: Callable[[bytes], bytes],
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    site.files["x.zip"] = spoil(served())
    (tmp_path / "x.zip").write_bytes(site.files["x.zip"])
    words = []
    for uri in (f"{site.url}/x.zip", str(tmp_path / "x.zip")):
        with pytest.raises(BadDataError) as caught:
            prepared(uri, tmp_path / "cache")
        words.append(str(caught.value).split("x.zip", 1)[1])
    assert words[0] == words[1]


def test_a_server_without_ranges_is_waited_for(
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    served()
    site.ranges = False
    cache = prepared(f"{site.url}/x.zip", tmp_path / "cache")
    assert content(cache) == content(prepared(str(tmp_path / "x.zip"), tmp_path / "local"))


def test_the_same_images_from_two_places_are_published_once(
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    served()
    served("y.zip")
    one, two = (prepared(f"{site.url}/{name}.zip", tmp_path / "cache") for name in "xy")
    assert one.folder == two.folder
    assert content(one) == content(two)


def test_what_is_fetched_again_is_hashed_again(
    site: Site,
    served: Callable[..., bytes],
    tmp_path: Path,
) -> None:
    right = served()
    prepared(f"{site.url}/x.zip", tmp_path / "cache")
    for folder in ("downloads", "prepared"):
        shutil.rmtree(tmp_path / "cache" / folder)
    site.files["x.zip"] = damage(right, 3)
    with pytest.raises(BadDataError, match="is not what it was"):
        prepared(f"{site.url}/x.zip", tmp_path / "cache")
