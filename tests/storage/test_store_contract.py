"""The contract of the stores: one suite over a local folder, S3, Google Cloud Storage and Azure."""

import hashlib
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from inat_job.errors import BadDataError, PreconditionFailed, Preempted
from inat_job.storage import (
    DamagedFileError,
    Entry,
    StorageOptions,
    Store,
    open_store,
    partial_download,
    ranged_download,
)
from inat_job.storage.local import LocalStore
from inat_job.storage.partial_download import ChunkPlan
from inat_job.storage.s3 import multipart_upload, s3_store

OPTIONS = StorageOptions(threads=4, retries=3)
REAL = "INAT_TEST_S3_ENDPOINT" in os.environ


@pytest.fixture(params=["local", "s3", "s3 root", "gs", "az"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        return open_store(str(tmp_path / "store"), OPTIONS)
    scheme, _, root = request.param.partition(" ")
    fixture = {"s3": "s3_bucket", "gs": "google_bucket", "az": "azure_container"}[scheme]
    bucket = f"{scheme}://{request.getfixturevalue(fixture)}"
    return open_store(bucket if root else f"{bucket}/some/prefix", OPTIONS)


@pytest.fixture
def if_match(store: Store) -> None:
    """Skips a server on which If-Match does not work."""
    if REAL and store.uri.startswith("s3://"):
        pytest.skip("radosgw 16 answers 412 to If-Match even with the right ETag")


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of 100 kB, so that a small object has many."""
    monkeypatch.setattr(partial_download, "plan_chunks", lambda size: ChunkPlan(size, 100_000))
    return 100_000


@pytest.fixture
def small_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads in parts from 5 MiB on."""
    is_s3 = isinstance(store, s3_store.S3Store | LocalStore)
    for name in ("SINGLE_REQUEST_LIMIT", "PART_SIZE"):
        monkeypatch.setattr(multipart_upload if is_s3 else sys.modules[type(store).__module__], name, 5 * 2**20)


def test_put_then_read(store: Store) -> None:
    entry = store.put("a/b.txt", b"hello")
    assert entry == store.stat("a/b.txt")
    assert (entry.key, entry.size) == ("a/b.txt", 5)
    assert entry.version
    assert store.read("a/b.txt") == b"hello"


def test_put_file_reports_progress(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"x" * 3_000_000)
    reported: list[tuple[int, int]] = []
    entry = store.put("file", source, progress=lambda done, total: reported.append((done, total)))
    assert entry.size == 3_000_000
    assert reported[-1] == (3_000_000, 3_000_000)
    assert store.read("file") == source.read_bytes()


def test_put_empty_object(store: Store, tmp_path: Path) -> None:
    assert store.put("empty", b"").size == 0
    assert store.read("empty") == b""
    store.get("empty", tmp_path / "empty", sha256=hashlib.sha256(b"").hexdigest())
    assert (tmp_path / "empty").read_bytes() == b""


def test_put_missing_file_is_bad_data(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="nowhere"):
        store.put("key", tmp_path / "nowhere")
    assert store.stat("key") is None


def test_each_put_changes_version(store: Store) -> None:
    versions = {store.put("key", bytes([i])).version for i in range(10)}
    assert len(versions) == 10


def test_list_is_sorted_and_filtered_by_prefix(store: Store) -> None:
    for key in ["b", "a/2", "a/10", "a-b", "ab/c", "a/1/x", "z é/ü+&?#%.txt"]:
        store.put(key, key.encode())
    assert [entry.key for entry in store.list()] == sorted(
        ["b", "a/2", "a/10", "a-b", "ab/c", "a/1/x", "z é/ü+&?#%.txt"]
    )
    assert [entry.key for entry in store.list("a/")] == ["a/1/x", "a/10", "a/2"]
    assert [entry.key for entry in store.list("a/1")] == ["a/1/x", "a/10"]
    assert list(store.list("nothing/")) == []
    assert list(store.list("z é/")) == [store.stat("z é/ü+&?#%.txt")]
    assert store.read("z é/ü+&?#%.txt").decode() == "z é/ü+&?#%.txt"


def test_list_most_and_read_range(store: Store) -> None:
    for key in ("c", "a", "b"):
        entry = store.put(key, b"0123456789")
    assert [each.key for each in store.list(most=2)] == ["a", "b"]
    assert store.read_range(entry, 3, 7) == b"3456"
    assert store.read_range(entry, 0, 10) == b"0123456789"
    store.put("b", b"other")
    with pytest.raises(PreconditionFailed):
        store.read_range(entry, 3, 7)


def test_list_empty_store(store: Store) -> None:
    assert list(store.list()) == []


def test_list_over_several_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3_store, "LIST_PAGE", 7)
    keys = [f"many/{i:02}" for i in range(23)]
    for key in keys:
        store.put(key, b".")
    assert [entry.key for entry in store.list("many/")] == keys


def test_missing_object(store: Store, tmp_path: Path) -> None:
    store.put("other", b"")
    assert store.stat("missing") is None
    assert store.stat("") is None
    store.delete("missing")
    with pytest.raises(BadDataError, match="missing"):
        store.read("missing")
    with pytest.raises(BadDataError, match="missing"):
        store.get("missing", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_delete(store: Store) -> None:
    store.put("key", b"1")
    store.delete("key")
    assert store.stat("key") is None


@pytest.mark.parametrize("key", ["/etc/passwd", "a//b", "//"])
def test_key_with_empty_components_is_a_key_where_there_are_no_folders(store: Store, key: str) -> None:
    if not store.uri.startswith("s3://"):  # obstore's keys are paths as well
        with pytest.raises(BadDataError, match="leaves"):
            store.put(key, b"data")
        return
    store.put(key, b"data")
    assert store.read(key) == b"data"


@pytest.mark.parametrize("key", ["../x", "a/../../x", "..", "a/.", "a\0b"])
def test_key_outside_root_is_rejected(store: Store, key: str, tmp_path: Path) -> None:
    for verb in (store.stat, store.read, store.delete, lambda k: store.put(k, b""), lambda k: store.get(k, tmp_path)):
        with pytest.raises(BadDataError, match="leaves"):
            verb(key)


def test_get_many_chunks(store: Store, tmp_path: Path, small_chunks: int) -> None:
    data = os.urandom(1_234_567)
    entry = store.put("big", data)
    reported: list[tuple[int, int]] = []
    digest = hashlib.sha256(data).hexdigest()
    assert store.get("big", tmp_path / "in/big", sha256=digest, progress=lambda *at: reported.append(at)) == entry
    assert (tmp_path / "in/big").read_bytes() == data
    assert reported[-1] == (len(data), len(data))
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["big"]


def test_get_replaces_existing_file(store: Store, tmp_path: Path) -> None:
    store.put("key", b"new")
    (tmp_path / "out").write_bytes(b"old and longer")
    store.get("key", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == b"new"


def test_get_wrong_sha256_leaves_nothing(store: Store, tmp_path: Path) -> None:
    store.put("key", b"data")
    found, asked = hashlib.sha256(b"data").hexdigest(), "0" * 64
    with pytest.raises(BadDataError, match=f"{found}, not {asked}.*#sha256={found}"):
        store.get("key", tmp_path / "out/key", sha256=asked)
    assert list((tmp_path / "out").iterdir()) == []


def get_and_stop(store: Store, path: Path, after: int) -> None:
    """Stop a download once more than so many bytes are there."""
    done = [0]
    with pytest.raises(Preempted):
        store.get(path.name, path, progress=lambda at, total: done.append(at), stop=lambda: done[-1] > after)


def test_get_resumes_after_stop(store: Store, tmp_path: Path, small_chunks: int) -> None:
    data = os.urandom(2_000_000)
    store.put("big", data)
    get_and_stop(store, tmp_path / "big", after=500_000)
    assert (tmp_path / "big.part").exists()
    kept = partial_download.parse_journal((tmp_path / "big.part.json").read_text())
    assert kept is not None
    assert not (tmp_path / "big").exists()
    reported: list[int] = []
    store.get("big", tmp_path / "big", progress=lambda at, total: reported.append(at))
    assert reported[0] >= kept.bytes_done() > 0
    assert (tmp_path / "big").read_bytes() == data


def test_get_restarts_after_object_changed(store: Store, tmp_path: Path, small_chunks: int) -> None:
    store.put("big", os.urandom(1_000_000))
    get_and_stop(store, tmp_path / "big", after=300_000)
    data = os.urandom(1_000_000)
    entry = store.put("big", data)
    assert store.get("big", tmp_path / "big") == entry
    assert (tmp_path / "big").read_bytes() == data


def test_get_restarts_when_object_changes_during_download(
    store: Store, tmp_path: Path, small_chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.put("big", os.urandom(1_000_000))
    data = os.urandom(1_000_000)
    changed: list[Entry] = []
    fetch = ranged_download._Download._chunk

    def change_then_fetch(
        self: ranged_download._Download, plan: partial_download.DownloadJournal, index: int, halt: Callable[[], bool]
    ) -> int:
        if index == 7 and not changed:
            changed.append(store.put("big", data))
        return fetch(self, plan, index, halt)

    monkeypatch.setattr(ranged_download._Download, "_chunk", change_then_fetch)
    entry = store.get("big", tmp_path / "big")
    assert entry == changed[0]
    assert (tmp_path / "big").read_bytes() == data


def test_get_replaces_damaged_chunks(store: Store, tmp_path: Path, small_chunks: int) -> None:
    data = os.urandom(500_000)
    entry = store.put("big", data)
    (tmp_path / "big.part").write_bytes(bytes(500_000))
    (tmp_path / "big.part.json").write_text(
        f'{{"version": "{entry.version}", "size": 500000, "chunk": 100000}}\n[0, 12]\n[1, 0]\n[2, "x"]\n[3'
    )
    store.get("big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == data


def _race(writers: int, write: Callable[[int], object]) -> list[int]:
    """The concurrent writers without a PreconditionFailed."""
    start = threading.Barrier(writers)

    def attempt(number: int) -> bool:
        start.wait()
        try:
            write(number)
        except PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(writers) as pool:
        return [number for number, won in enumerate(pool.map(attempt, range(writers))) if won]


def test_concurrent_create_has_one_winner(store: Store) -> None:
    for turn in range(5):
        (winner,) = _race(8, lambda number, key=f"{turn}": store.put(key, b"%d" % number, if_none_match=True))  # type: ignore[misc]
        assert store.read(f"{turn}") == b"%d" % winner


@pytest.mark.usefixtures("if_match")
def test_concurrent_replace_has_one_winner(store: Store) -> None:
    entry = store.put("key", b"first")
    for _ in range(5):
        (winner,) = _race(8, lambda number, old=entry: store.put("key", b"%d" % number, if_match=old.version))  # type: ignore[misc]
        assert store.read("key") == b"%d" % winner
        entry = store.put("key", b"next")


def test_failed_condition_changes_nothing(store: Store) -> None:
    store.put("key", b"first")
    with pytest.raises(PreconditionFailed):
        store.put("key", b"second", if_none_match=True)
    with pytest.raises(PreconditionFailed):
        store.put("key", b"second", if_match="another")
    with pytest.raises(PreconditionFailed):
        store.put("missing", b"second", if_match="another")
    assert store.read("key") == b"first"
    assert [entry.key for entry in store.list()] == ["key"]


@pytest.mark.usefixtures("if_match")
def test_put_if_match(store: Store) -> None:
    """Skips a server on which If-Match does not work."""
    entry = store.put("key", b"first")
    for text in (b"second", b"third"):
        entry = store.put("key", text, if_match=entry.version)
        assert store.stat("key") == entry
    assert store.read("key") == b"third"


@pytest.mark.usefixtures("small_parts")
def test_put_large_file_in_parts(store: Store, tmp_path: Path) -> None:
    data = os.urandom(12 * 2**20)
    source = tmp_path / "source"
    source.write_bytes(data)
    reported: list[tuple[int, int]] = []
    entry = store.put("big", source, if_none_match=True, progress=lambda *at: reported.append(at))
    assert store.stat("big") == entry
    assert reported[-1] == (len(data), len(data))
    store.get("big", tmp_path / "back", sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(PreconditionFailed):
        store.put("big", source, if_none_match=True)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("size", [100, 12 * 2**20])
def test_put_refuses_a_file_of_another_sha256(store: Store, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    sha256 = hashlib.sha256(data).hexdigest()
    source = tmp_path / "source"
    source.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedFileError, match="source is not what was written"):
        store.put("key", source, sha256=sha256)
    assert list(store.list()) == []
    source.write_bytes(data)
    assert store.put("key", source, sha256=sha256) == store.stat("key")
