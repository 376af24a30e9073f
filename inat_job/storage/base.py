"""The contract of every store: object keys, object metadata, and the verbs list, stat, read, get, put and delete."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypedDict, Unpack

from inat_job.errors import BadDataError
from inat_job.events import Progress
from inat_job.signals import Stop
from inat_job.storage.partial_download import PartialDownload

Role = Literal["data", "output"]
"""What a store is used for: a missing bucket is bad data when reading, and a wrong configuration when writing."""

UNKNOWN_SIZE = -1


class DamagedFileError(BadDataError):
    """A file to store is no longer what was written."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path} is not what was written: check the disk.")


@dataclass(frozen=True)
class StorageOptions:
    """How stores are reached. `threads` is per transfer; `retries` counts beyond the first attempt of each request.

    With waits that grow to 20 s, the default retries outlast a minute of complete silence. `flag` is the option that
    gives the address, for messages.
    """

    sse_kms_key_id: str | None = None
    requester_pays: bool = False
    anonymous: bool = False
    threads: int = 8
    retries: int = 14
    flag: str = "--data"


@dataclass(frozen=True)
class Entry:
    """An object: its key under the store's root, its size in bytes and a version that changes with its contents.

    The size is UNKNOWN_SIZE and the version empty if an https server reports neither.
    """

    key: str
    size: int
    version: str


class Transfer(TypedDict, total=False):
    """How an object is downloaded; `incoming` lets other threads read it meanwhile."""

    sha256: str | None
    progress: Progress | None
    stop: Stop
    incoming: PartialDownload | None


class Conditions(TypedDict, total=False):
    """When an object is stored: if it does not exist, is at version `if_match`, or its file has this `sha256`.

    `progress` is of the upload. `confirm` is called once all bytes are with the store, and may raise: only then does
    the object appear, and only if `delete_drafts` has not deleted the bytes meanwhile.
    """

    if_none_match: bool
    if_match: str | None
    sha256: str | None
    progress: Progress | None
    confirm: Callable[[], None] | None


class Store(Protocol):
    """Objects under one root.

    Each verb may raise TransientError, NoPermissionError, ConflictError and, for a key that leaves the root,
    BadDataError; no foreign exception leaves a store.
    """

    uri: str

    def list(self, prefix: str = "", most: int | None = None) -> Iterator[Entry]:
        """Every object whose key starts with `prefix`, sorted by key; the first `most` of them."""

    def stat(self, key: str) -> Entry | None:
        """The object's entry, or None only if the object is known to be missing."""

    def read(self, key: str) -> bytes:
        """A small object in full. Raises BadDataError if it is missing."""

    def read_range(self, entry: Entry, start: int, end: int) -> bytes | None:
        """The bytes from `start` up to `end` of an object of a known version; None if the server supports no ranges.

        The first 4,096 bytes come from any server.

        The range must fit into memory. Raises BadDataError if the object is missing, PreconditionFailed if it has
        another version by now.
        """

    def get(self, key: str, path: Path, **transfer: Unpack[Transfer]) -> Entry:
        """Download the object to `path`, continuing an interrupted download.

        Raises BadDataError if the object is missing or has another sha256, Preempted if `stop` turns true.
        """

    def put(self, key: str, source: Path | bytes, **conditions: Unpack[Conditions]) -> Entry:
        """Store the object atomically, and verify it.

        A file is hashed while it is sent if its `sha256` is given. Raises DamagedFileError, before anything is stored,
        if it has another one; PreconditionFailed if the object exists already (`if_none_match`) or is not at version
        `if_match`.
        """

    def delete(self, key: str) -> None:
        """Delete the object; a missing object is no error."""

    def delete_drafts(self, selected: Callable[[str], bool]) -> None:
        """Delete what unfinished puts of the keys that `selected` is true for have sent; such a put can only fail."""


def checked_key(key: str, uri: str, *, has_folders: bool = False) -> str:
    """`key` itself if it stays under the root. Raises BadDataError otherwise.

    Where there are folders, none has an empty name; a bucket or web server has none, and `a//b` is a key as others.
    """
    refused = ("", ".", "..") if has_folders else (".", "..")
    if not key or "\0" in key or any(segment in refused for segment in key.split("/")):
        raise BadDataError(f"The key {key!r} leaves {uri}: give a relative path without '..' or '//'.")
    return key
