"""Errors of the local disk, atomic writes and digests."""

import errno
import hashlib
import json
import os
import socket
from pathlib import Path

import pytest

from inat_job.errors import ConflictError, JobError, NoPermissionError, TransientError
from inat_job.storage.disk import (
    disk_errors,
    parse_json,
    read_json_object,
    refuse_foreign,
    sha256_of,
    shown_number,
    write_atomic,
    write_named,
)


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.ENOSPC, ConflictError, "No space left in .* MB free"),
        (errno.EDQUOT, ConflictError, "No space left"),
        (errno.EACCES, NoPermissionError, "No permission for"),
        (errno.EROFS, NoPermissionError, "No permission for"),
        (errno.ENOENT, ConflictError, "cannot be made, or was deleted"),
        (errno.ENOTDIR, ConflictError, "in the way"),
        (errno.EIO, TransientError, "disk failed"),
    ],
)
def test_disk_errors(tmp_path: Path, code: int, kind: type[JobError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught, disk_errors(tmp_path / "x"):
        raise OSError(code, os.strerror(code))
    assert str(tmp_path) in str(caught.value)


def test_full_disk() -> None:
    with pytest.raises(ConflictError, match="No space left in /dev"), disk_errors(Path("/dev/full")):
        Path("/dev/full").write_bytes(b"x")


def test_write_atomic_leaves_no_draft(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "x", b"one")
    write_atomic(tmp_path / "a" / "x", b"two")
    assert [(path.name, path.read_bytes()) for path in (tmp_path / "a").iterdir()] == [("x", b"two")]


def test_failed_write_atomic_keeps_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(draft: Path, path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    write_atomic(tmp_path / "x", b"old")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "x", b"new")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("x", b"old")]


@pytest.mark.parametrize("exists", [True, False])
def test_write_named_follows_a_link_and_write_atomic_replaces_it(tmp_path: Path, exists: bool) -> None:
    target, link = tmp_path / "folder" / "target", tmp_path / "link"
    if exists:
        target.parent.mkdir()
        target.write_bytes(b"old")
    link.symlink_to("folder/target")
    write_named(link, b"new")
    assert (link.is_symlink(), target.read_bytes(), [*target.parent.iterdir()]) == (True, b"new", [target])
    write_atomic(link, b"other")
    assert (link.is_symlink(), link.read_bytes(), target.read_bytes()) == (False, b"other", b"new")


@pytest.mark.parametrize(
    ("name", "what"), [("pipe", "a pipe"), ("socket", "a socket"), ("folder", "a folder"), ("/dev/null", "a device")]
)
def test_refuse_foreign_opens_nothing_but_files(tmp_path: Path, name: str, what: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
    with pytest.raises(ConflictError, match=f", which is {what}, not a file: name another file"):
        refuse_foreign(tmp_path / name, "--csv", "table", lambda start: True)


def test_refuse_foreign_takes_an_empty_file_and_a_dead_link(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("empty", "link", "none"):
        refuse_foreign(tmp_path / name, "--csv", "table", lambda start: False)


@pytest.mark.parametrize("content", [b"", b"[]", b"5", b"{", b"\xff", b"[" * 100_000])
def test_read_json_object_of_anything_else_is_empty(tmp_path: Path, content: bytes) -> None:
    assert read_json_object(tmp_path / "missing") == {}
    (tmp_path / "x").write_bytes(content)
    assert read_json_object(tmp_path / "x") == {}
    (tmp_path / "x").write_bytes(b'{"a": [1]}')
    assert read_json_object(tmp_path / "x") == {"a": [1]}


def test_sha256_of_calls_between_blocks(tmp_path: Path) -> None:
    data, calls = os.urandom(5 * 2**20), []
    (tmp_path / "x").write_bytes(data)
    assert sha256_of(tmp_path / "x", lambda: calls.append(1)) == hashlib.sha256(data).hexdigest()
    assert len(calls) == 2


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000 + "]" * 100_000,
        "[" * 60 + "]" * 60,
        "9" * 5000,
        str(2**63),
        '"\\ud800"',
        '{"\\udfff": 1}',
        "{",
        "\xff",
    ],
    ids=lambda each: each[:10],
)
def test_json_that_cannot_be_handled_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="."):
        parse_json(text.encode("latin-1"))


def test_json_is_parsed() -> None:
    value = {"a": [1, -(2**63), 2**63 - 1, 1.5, None, True, "é\U0001f600"], "b": {"c": {}}}
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value).encode()) == value


@pytest.mark.parametrize("value", [None, "1", True, [1], float("nan"), float("inf"), 1e300, -1e15])
def test_shown_number_is_none_for_anything_else(value: object) -> None:
    assert shown_number(value) is None
    assert [shown_number(each) for each in (0, -1, 0.5)] == [0, -1, 0.5]
