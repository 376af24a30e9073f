"""The contract that every store keeps: what an object is called, what is known of it, and the five verbs."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from inat_job.errors import BadDataError
from inat_job.events import Progress
from inat_job.signals import Stop, never
from inat_job.storage.partial_download import PartialDownload

Role = Literal["data", "output"]
"""What a store is for: a missing bucket is bad data when read from, and a configuration to mend when written to."""

UNKNOWN_SIZE = -1


@dataclass(frozen=True)
class StorageOptions:
    """How stores are reached. `threads` per transfer; `retries` beyond the first attempt of each request.

    With the waits in between, which grow to 20 s, as many retries outlast a minute in which nothing answers.
    """

    sse_kms_key_id: str | None = None
    requester_pays: bool = False
    anonymous: bool = False
    threads: int = 8
    retries: int = 14


@dataclass(frozen=True)
class Entry:
    """An object: its key under the store's root, its size in bytes and a version that changes when the object does.

    The size is UNKNOWN_SIZE and the version empty where an https server tells neither.
    """

    key: str
    size: int
    version: str


class Store(Protocol):
    """Objects under one root; every error that leaves it is one of ours.

    Each verb may raise TransientError, NoPermissionError, ConflictError and, for a key that leads out of the root,
    BadDataError.
    """

    uri: str

    def list(self, prefix: str = "", most: int | None = None) -> Iterator[Entry]:
        """Every object whose key starts with `prefix`, sorted by key; the first `most` of them."""
        ...

    def stat(self, key: str) -> Entry | None:
        """The object's entry, or None only when it is known to be missing."""
        ...

    def read(self, key: str) -> bytes:
        """A small object, whole. Raises BadDataError when it is missing."""
        ...

    def part(self, entry: Entry, start: int, end: int) -> bytes | None:
        """The bytes from `start` up to `end` of an object whose version is known, small enough for memory; None where a
        server gives no parts.

        Raises BadDataError when it is missing, PreconditionFailed when it is of another version by now.
        """
        ...

    def get(
        self,
        key: str,
        path: Path,
        *,
        sha256: str | None = None,
        progress: Progress | None = None,
        stop: Stop = never,
        landing: PartialDownload | None = None,
    ) -> Entry:
        """Bring the object to `path`, going on where an earlier attempt was broken.

        `landing` lets it be read meanwhile. Raises BadDataError when it is missing or its sha256 is another, Preempted
        when `stop` turns true.
        """
        ...

    def put(
        self,
        key: str,
        source: Path | bytes,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        progress: Progress | None = None,
    ) -> Entry:
        """Store the object, atomically, and verify it.

        Raises PreconditionFailed when it exists already (`if_none_match`) or is not at version `if_match`.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove the object; a missing one is fine."""
        ...


def checked_key(key: str, uri: str) -> str:
    """`key` itself, if it stays under the root. Raises BadDataError otherwise."""
    parts = key.split("/")
    if not key or key.startswith("/") or "\0" in key or any(part in ("", ".", "..") for part in parts):
        raise BadDataError(f"The key {key!r} does not stay under {uri}: give a relative path without '..' or '//'.")
    return key


def without_query(address: str) -> str:
    """`address` without what may be secret: its user name and password, its query and its fragment."""
    bare = re.split(r"[?#]", address, maxsplit=1)[0]
    return re.sub(r"^([a-z][a-z0-9+.-]*://)[^/@]*@", r"\1", bare, flags=re.IGNORECASE)
