"""What only a local folder has: links, leftovers, file modes, several processes at once."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inat_job.errors import BadDataError, ConflictError, JobError, NoPermissionError, PreconditionFailed
from inat_job.storage import local, open_store


def test_failed_put_keeps_old_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    store = open_store(str(tmp_path))
    store.put("key", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConflictError, match="No space left"):
        store.put("key", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["key"]
    assert (tmp_path / "key").read_bytes() == b"old"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_folder_is_no_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(NoPermissionError):
        open_store(str(tmp_path)).put("key", b"")


def test_file_in_place_of_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(str(tmp_path))
    with pytest.raises(ConflictError, match="in the way"):
        store.put("file/key", b"")
    assert store.stat("file/key") is None
    with pytest.raises(BadDataError):
        store.read("file/key")
    assert list(open_store(str(tmp_path / "file")).list()) == []


def test_folder_is_not_an_object(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    store = open_store(str(tmp_path))
    assert store.stat("folder") is None
    with pytest.raises(JobError):
        store.read("folder")


def test_private_files_are_not_listed(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    entry = store.put("key", b"1")
    store.put("key", b"2", if_match=entry.version)
    (tmp_path / ".inat-0123.tmp").write_bytes(b"left by a crash")
    (tmp_path / ".hidden").write_bytes(b"")
    assert [entry.key for entry in store.list()] == [".hidden", "key"]


def test_list_follows_links_once(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/file").write_bytes(b"")
    (tmp_path / "store").mkdir()
    (tmp_path / "store/link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "store/loop").symlink_to(tmp_path / "store")
    (tmp_path / "store/dangling").symlink_to(tmp_path / "nowhere")
    assert [entry.key for entry in open_store(str(tmp_path / "store")).list()] == ["link/file"]


def test_file_mode(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        open_store(str(tmp_path)).put("key", b"")
    finally:
        os.umask(mask)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o644


def test_create_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    store = open_store(str(tmp_path))
    assert store.put("key", b"1", if_none_match=True) == store.stat("key")
    with pytest.raises(PreconditionFailed):
        store.put("key", b"2", if_none_match=True)
    assert store.read("key") == b"1"


_COUNT = """
import sys
from inat_job.errors import PreconditionFailed
from inat_job.storage import local, open_store
store, done = open_store(sys.argv[1]), 0
while done < 25:
    entry, value = store.stat("count"), int(store.read("count"))
    try:
        store.put("count", b"%04d" % (value + 1), if_match=entry.version)
    except PreconditionFailed:
        continue
    done += 1
"""


def test_concurrent_if_match_loses_no_update(tmp_path: Path) -> None:
    """Quick writes of equal size, which a version made of size and time alone could not tell apart."""
    store = open_store(str(tmp_path))
    store.put("count", b"0000")
    children = [subprocess.Popen([sys.executable, "-c", _COUNT, str(tmp_path)]) for _ in range(4)]
    assert [child.wait(60) for child in children] == [0, 0, 0, 0]
    assert store.read("count") == b"0100"


def test_version_changes_within_one_clock_tick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = local._write

    def write_at_noon(draft: Path, source: Path | bytes, sha256: None, progress: None) -> int:
        size = write(draft, source, sha256, progress)
        os.utime(draft, ns=(10**18, 10**18))
        return size

    monkeypatch.setattr(local, "_write", write_at_noon)
    store = open_store(str(tmp_path))
    assert len({store.put("key", b"%d" % turn).version for turn in range(5)}) == 5
