"""From the words of `--data` to a container of pictures on this machine, fetched at most once, with its digest."""

import hashlib
import json
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

from inat_job import signals
from inat_job.data import archives, demo, locks
from inat_job.data.layout import is_litter
from inat_job.errors import BadDataError, NoPermissionError, UsageError
from inat_job.settings import public_uri
from inat_job.signals import Stop
from inat_job.storage import Entry, StorageOptions, Store, open_store, split_uri
from inat_job.storage.hashing import sha256_of
from inat_job.storage.local import LocalStore

REMOTE = ("s3://", "http://", "https://")


@dataclass(frozen=True)
class Source:
    """A data set that is known to exist.

    `identity` changes whenever the pictures may have; `digest` is the SHA-256 of an archive, and None for loose
    files, whose digest comes of reading them. `open` fetches what is not here yet and gives the container.
    """

    uri: str
    identity: str
    digest: str | None
    expected: str | None
    open: Callable[[], archives.Container]

    def verify(self, digest: str) -> None:
        """Raise BadDataError unless `digest` is the one that the URI's `#sha256=` names, if it names one."""
        if self.expected and digest != self.expected:
            raise BadDataError(
                f"{self.uri} has sha256 {digest}, not {self.expected} as --data says: "
                "fetch the right file or mend #sha256=."
            )


def find(uri: str, cache_dir: Path, options: StorageOptions, stop: Stop) -> Source:
    """Look the data set up. Raises UsageError, BadDataError, ConflictError and what the store raises."""
    plain, expected = _split_hash(uri)
    if plain == "demo:":
        plain = str(demo.make(cache_dir / "demo", stop))
    elif ":" in plain.split("/")[0] and not plain.startswith(REMOTE):
        raise UsageError(f"--data is {public_uri(plain)!r}: use s3://, https://, a path, or demo:")
    if plain.startswith(REMOTE) and not archives.is_archive(urlsplit(plain).path):
        return _loose(open_store(plain, options), public_uri(plain), expected)
    if not plain.startswith(REMOTE) and Path(plain).is_dir():
        return _folder(Path(plain), expected, cache_dir, stop)
    return _archive(plain, expected, cache_dir, options, stop)


def _split_hash(uri: str) -> tuple[str, str | None]:
    plain, mark, fragment = uri.partition("#")
    if not mark:
        return plain, None
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if not match:
        raise UsageError(f"--data ends in #{fragment}: write #sha256= and 64 hexadecimal digits.")
    return plain, match[1].lower()


def _folder(folder: Path, expected: str | None, cache_dir: Path, stop: Stop) -> Source:
    files = [path for path in folder.iterdir() if not is_litter(path.name)]
    if len(files) == 1 and files[0].is_file() and archives.is_archive(files[0].name):
        return _archive(str(files[0]), expected, cache_dir, StorageOptions(), stop)
    return _loose(open_store(str(folder)), str(folder), expected)


def _loose(store: Store, uri: str, expected: str | None) -> Source:
    entries = [entry for entry in store.list() if not is_litter(entry.key)]
    if not entries:
        raise BadDataError(f"{uri} holds no files: check --data.")
    listing = json.dumps([(entry.key, entry.size, entry.version) for entry in entries])
    identity = hashlib.sha256(f"{uri}{listing}".encode(errors="backslashreplace")).hexdigest()
    container = archives.Loose(store, [entry.key for entry in entries])
    return Source(uri, identity, None, expected, lambda: container)


def _archive(uri: str, expected: str | None, cache_dir: Path, options: StorageOptions, stop: Stop) -> Source:
    parent, key = split_uri(uri)
    shown = public_uri(uri)
    store = open_store(parent, options)
    entry = store.stat(key)
    if entry is None:
        raise BadDataError(f"{shown} does not exist: check --data.")
    name = hashlib.sha256(f"{store.uri}/{public_uri(key)}".encode(errors="backslashreplace")).hexdigest()
    note = cache_dir / "sources" / f"{name[:24]}.json"
    here = partial(_local_path, store, key, entry, cache_dir, name[:24], stop)
    digest = _noted(note, entry) or _note(note, entry, here(), stop)
    source = Source(shown, digest, digest, expected, lambda: archives.open_archive(here()))
    source.verify(digest)
    return source


def _local_path(store: Store, key: str, entry: Entry, cache_dir: Path, name: str, stop: Stop) -> Path:
    """Where the archive lies on this machine, after fetching it if need be."""
    if isinstance(store, LocalStore):
        return store.root / key
    version = hashlib.sha256(f"{entry.version} {entry.size}".encode()).hexdigest()[:12]
    path = cache_dir / "downloads" / name / f"{version}-{Path(urlsplit(key).path).name}"
    # A server that tells no version may have another file each time.
    return locks.fetch(store, key, path, cache_dir, stop, what="pull", anew=not entry.version)


def _noted(note: Path, entry: Entry) -> str | None:
    """The digest found the last time, if the object is still the same."""
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    same = entry.version and (known.get("version"), known.get("size")) == (entry.version, entry.size)
    return str(known["digest"]) if same else None


def _note(note: Path, entry: Entry, path: Path, stop: Stop) -> str:
    try:
        digest = sha256_of(path, lambda: signals.check(stop, "hashing the data set"))
    except OSError as error:
        raise NoPermissionError(f"{path} cannot be read ({error.strerror}): check its permissions.") from error
    text = json.dumps({"version": entry.version, "size": entry.size, "digest": digest})
    with suppress(OSError):  # a note only saves time, and a cache that is complete may be read only
        locks.write(note, text.encode())
    return digest
