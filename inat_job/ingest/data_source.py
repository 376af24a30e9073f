"""From the words of `--data` to a container of images on this machine, fetched at most once, with its digest."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from inat_job.data.layout import is_litter
from inat_job.errors import BadDataError, UsageError
from inat_job.ingest import archives, demo
from inat_job.ingest.download import Download
from inat_job.options import public_uri, unsigned_uri
from inat_job.signals import Stop
from inat_job.storage import StorageOptions, Store, open_store, split_uri
from inat_job.storage.disk import disk_errors
from inat_job.storage.https import HttpsStore

DEMO = "demo:"
REMOTE = ("s3://", "http://", "https://")


@dataclass(frozen=True)
class DataSource:
    """A data set that is known to exist.

    `draft` names unfinished work on it. `identify` gives what changes whenever the images may have, of an archive its
    SHA-256, and fetches it if need be; `known` gives that only where it takes no fetching. `open` gives the container;
    the bytes of an archive are hashed before they are believed. `download` is set while the archive may be far away.
    """

    uri: str
    draft: str
    expected: str | None
    known: Callable[[], str | None]
    identify: Callable[[], str]
    open: Callable[[], archives.Container]
    hashed: bool
    download: Download | None = None

    @property
    def digest(self) -> str | None:
        """The SHA-256 of an archive; None for loose files, whose digest comes of reading them."""
        return self.identify() if self.hashed else None

    def verify(self, digest: str) -> None:
        """Raise BadDataError unless `digest` is the one that the URI's `#sha256=` names, if it names one."""
        if self.expected and digest != self.expected:
            raise BadDataError(
                f"{self.uri} has sha256 {digest}, not {self.expected} as --data says: "
                "fetch the right file or mend #sha256=."
            )


def find(uri: str, cache_dir: Path, options: StorageOptions, stop: Stop) -> DataSource:
    """Look the data set up. Raises UsageError, BadDataError, ConflictError and what the store raises."""
    plain, expected = split(uri)
    if plain == DEMO:
        return _archive(str(demo.make(cache_dir / "demo", stop)), expected, cache_dir, options, stop, shown=plain)
    if plain.startswith(REMOTE) and not archives.is_archive(urlsplit(plain).path):
        return _loose(open_store(plain, options), public_uri(plain), expected)
    if not plain.startswith(REMOTE):
        with disk_errors(Path(plain)):
            if Path(plain).is_dir():
                return _folder(Path(plain), expected, cache_dir, stop)
    return _archive(plain, expected, cache_dir, options, stop, shown=public_uri(plain))


def split(uri: str) -> tuple[str, str | None]:
    """Where the data set is (a URI, a path or demo:), and the SHA-256 that is asked for. Raises UsageError."""
    plain, mark, fragment = uri.partition("#")
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if mark and not match:
        raise UsageError(f"--data ends in #{fragment}: write #sha256= and 64 hexadecimal digits.")
    if plain.lower().startswith("file://"):
        plain = open_store(plain).uri
    elif ":" in plain.split("/")[0] and not plain.startswith(REMOTE) and plain != DEMO:
        raise UsageError(f"--data is {public_uri(plain)!r}: use s3://, https://, file://, a path, or demo:")
    return plain, match[1].lower() if match else None


def only_archive(folder: Path) -> Path | None:
    """The archive that a folder holds beside nothing else, if it does."""
    files = [path for path in folder.iterdir() if not is_litter(path.name)]
    return files[0] if len(files) == 1 and files[0].is_file() and archives.is_archive(files[0].name) else None


def identity(uri: str, store: Store, key: str) -> str:
    """What names an archive, without what changes from one signature of its address to the next."""
    return unsigned_uri(uri) if isinstance(store, HttpsStore) else f"{store.uri}/{key}"


def _folder(folder: Path, expected: str | None, cache_dir: Path, stop: Stop) -> DataSource:
    if found := only_archive(folder):
        return _archive(str(found), expected, cache_dir, StorageOptions(), stop, shown=str(found))
    return _loose(open_store(str(folder)), str(folder), expected)


def _loose(store: Store, uri: str, expected: str | None) -> DataSource:
    entries = [entry for entry in store.list() if not is_litter(entry.key)]
    if not entries:
        raise BadDataError(f"{uri} holds no files: check --data.")
    listing = json.dumps([(entry.key, entry.size, entry.version) for entry in entries])
    identity = hashlib.sha256(f"{uri}{listing}".encode(errors="backslashreplace")).hexdigest()
    container = archives.Loose(store, {entry.key: entry.size for entry in entries})
    return DataSource(
        _readable(uri), identity, expected, lambda: identity, lambda: identity, lambda: container, hashed=False
    )


def _archive(
    uri: str, expected: str | None, cache_dir: Path, options: StorageOptions, stop: Stop, *, shown: str
) -> DataSource:
    parent, key = split_uri(uri)
    store = open_store(parent, options)
    entry = store.stat(key)
    if entry is None:
        raise BadDataError(f"{shown} does not exist: check --data.")
    download = Download(store, entry, _readable(shown), identity(uri, store, key), cache_dir, stop, expected)
    draft, far = (download.draft, download) if download.lands else (download.digest(), None)
    source = DataSource(
        _readable(shown), draft, expected, download.known, download.digest, download.open, hashed=True, download=far
    )
    if digest := download.known():
        source.verify(digest)
    return source


def _readable(uri: str) -> str:
    """A URI that a report can hold: a path may have bytes that are no UTF-8."""
    return uri.encode(errors="backslashreplace").decode()
