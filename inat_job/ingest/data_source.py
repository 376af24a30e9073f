"""Resolves `--data` to a container of images on this machine, downloaded at most once, and its digest."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from inat_job.address import BUCKETS, as_utf8, expanded, in_bucket
from inat_job.data.layout import BY_FOLDERS, Arrangement, ImageFile, is_ignored, linked_trees
from inat_job.data.layout_errors import is_called_image
from inat_job.errors import BadDataError, NoPermissionError, UsageError
from inat_job.ingest import archives, demo, kinds, parquet_files
from inat_job.ingest.download import Download
from inat_job.options import public_uri, unsigned_uri
from inat_job.signals import Stop
from inat_job.storage import Entry, StorageOptions, Store, open_store, split_uri
from inat_job.storage.base import UNKNOWN_SIZE
from inat_job.storage.disk import disk_errors
from inat_job.storage.interruptible import interruptible
from inat_job.storage.local import LocalStore, missing_object

DEMO = "demo:"
REMOTE = (*BUCKETS, "http://", "https://")
_HUB = re.compile(r"(https?://[^/?#]+)/datasets/([\w.-]+/[\w.-]+)/?")
"""A data set on the Hugging Face Hub, or a server like it."""

_LIKE_A_HASH = re.compile(r"(sha|md5|crc)[-_0-9a-z]*=|[0-9a-f]{32,}$", re.IGNORECASE)


@dataclass(frozen=True)
class DataSource:
    """A data set that is known to exist.

    `draft_key` names unfinished work on it. `identify` returns an identity that changes whenever the images may have
    changed, for an archive its SHA-256, and downloads the archive if necessary; `known_identity` returns it only if no
    download is necessary. `open` returns the container; the bytes of an archive are hashed before they are trusted.
    `archive` is the archive, `download` too if it may be read while it comes. `check_listed` may refuse the images
    before they are decoded. `arrangement` decides classes and splits beside the folders.
    """

    uri: str
    draft_key: str
    expected_sha256: str | None
    known_identity: Callable[[], str | None]
    identify: Callable[[], str]
    open: Callable[[], archives.Container]
    is_archive: bool
    archive: Download | None = None
    download: Download | None = None
    check_listed: Callable[[Sequence[ImageFile]], None] = lambda images: None
    arrangement: Arrangement = BY_FOLDERS

    @property
    def digest(self) -> str | None:
        """The SHA-256 of an archive; None for loose files, whose digest is that of their contents."""
        return self.identify() if self.is_archive else None

    def verify(self, digest: str) -> None:
        """Raise BadDataError unless `digest` is the one in the URI's `#sha256=`, if it has one."""
        if self.expected_sha256 and digest != self.expected_sha256:
            raise BadDataError(
                f"{self.uri} has sha256 {digest}, not {self.expected_sha256} as --data says: "
                "use the right file or fix #sha256=."
            )


def find(
    uri: str, cache_dir: Path, options: StorageOptions, stop: Stop, arrangement: Arrangement = BY_FOLDERS
) -> DataSource:
    """The data set at `uri`. Raises UsageError, BadDataError, ConflictError and what the store raises."""
    return replace(_find(uri, cache_dir, options, stop), arrangement=arrangement)


def _find(uri: str, cache_dir: Path, options: StorageOptions, stop: Stop) -> DataSource:
    plain, expected = parse_uri(uri)
    if files := single_files(plain, options, stop):
        return _loose_files(files, public_uri(plain), expected)
    if plain == DEMO:
        return _archive(str(demo.make(cache_dir / "demo", stop)), expected, cache_dir, options, stop, shown=plain)
    if plain.startswith(REMOTE) and not is_archive(plain, options, stop):
        return _loose_files(_listed(open_store(plain, options), stop), public_uri(plain), expected)
    if not plain.startswith(REMOTE):
        with disk_errors(Path(plain)):
            if Path(plain).is_dir():
                return _folder(Path(plain), expected, cache_dir, stop)
    return _archive(plain, expected, cache_dir, options, stop, shown=public_uri(plain))


def parse_uri(uri: str) -> tuple[str, str | None]:
    """The data set's address (a URI, a path or demo:), and the SHA-256 that it must have. Raises UsageError."""
    uri = re.sub(r"^(s3|gs|az|https?|file)://", lambda scheme: scheme[0].lower(), uri, flags=re.IGNORECASE)
    plain, mark, fragment = uri.rpartition("#")
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if mark and not match and (uri.startswith(("http://", "https://")) or _LIKE_A_HASH.match(fragment)):
        raise UsageError(f"--data ends in #{fragment}: use #sha256= and 64 hexadecimal digits.")
    plain = expanded(plain if match else uri)  # a key or path may have a # of its own
    if (other := kinds.unread_suffix(plain.partition("?")[0])) and not Path(plain).is_dir():
        suffixes = ", ".join(kinds.SUFFIXES)
        raise UsageError(f"--data is {public_uri(plain)}, and {other} files are not read: pack it as {suffixes}.")
    if plain.startswith("file://"):
        plain = open_store(plain).uri
    elif ":" in plain.split("/")[0] and not plain.startswith(REMOTE) and plain != DEMO:
        known = ", ".join((*BUCKETS, "https://", "file://"))
        raise UsageError(f"--data is {public_uri(plain)!r}: use {known}, a path, or demo:")
    return plain, match[1].lower() if match else None


def names_archive(uri: str) -> bool:
    """Whether the address of an object is that of an archive; a web address may have a query behind it."""
    return kinds.is_archive(uri if in_bucket(uri) else uri.partition("?")[0])


def is_archive(uri: str, options: StorageOptions, stop: Stop) -> bool:
    """Whether a remote address is that of an archive and not a prefix: by its name, or else by what the bucket holds.

    Raises Preempted and what the store raises.
    """
    if names_archive(uri) or not in_bucket(uri):
        return True
    parent, key = split_uri(uri)
    if not key or uri.endswith("/") or any(interruptible(open_store(uri, options), stop).list(most=1)):
        return False
    with suppress(NoPermissionError):  # S3's answer for a missing key to those who may not list the whole bucket
        return interruptible(open_store(parent, options), stop).stat(key) is not None
    return False


def only_archive(folder: Path) -> Path | None:
    """The archive in a folder that holds nothing else but links to it, or None."""
    files = [path for path in folder.iterdir() if not is_ignored(path.name)]
    if len({os.path.realpath(path) for path in files}) != 1:
        return None
    named = [path for path in sorted(files, key=Path.is_symlink) if path.is_file() and kinds.is_archive(path.name)]
    return named[0] if named else None


def loose_files(store: Store, listed: Iterable[Entry]) -> tuple[list[Entry], dict[str, str]]:
    """The listed files without litter, and the reasons for those that cannot be read.

    A file is among them once, even if a link beside the data set leads to it too.
    """
    entries = [entry for entry in listed if not is_ignored(entry.key)]
    if not isinstance(store, LocalStore):
        return entries, {}
    linked = linked_trees((entry.key for entry in entries), lambda name: os.path.realpath(store.root / name))
    unreadable = store.unreadable().items()
    return (
        [entry for entry in entries if not entry.key.startswith(linked)],
        {name: reason for name, reason in unreadable if not is_ignored(name) and not name.startswith(linked)},
    )


def archive_name(uri: str, store: Store, key: str) -> str:
    """The archive's address without the parts that change from one signature to the next."""
    return unsigned_uri(uri) if store.uri.lower().startswith(("http://", "https://")) else f"{store.uri}/{key}"


def _folder(folder: Path, expected: str | None, cache_dir: Path, stop: Stop) -> DataSource:
    if found := only_archive(folder):
        return _archive(str(found), expected, cache_dir, StorageOptions(), stop, shown=str(found))
    return _loose_files(_listed(open_store(str(folder)), stop), str(folder), expected)


@dataclass(frozen=True)
class FileSet:
    """Objects of a store that hold a data set, without litter; `unreadable` has the reasons for those that cannot be
    read.
    """

    store: Store
    entries: Sequence[Entry]
    unreadable: Mapping[str, str] = field(default_factory=dict)

    def open(self) -> archives.Container:
        """The images: a file each, or rows of Parquet files if there are no others."""
        parquet = [entry for entry in self.entries if entry.key.partition("?")[0].endswith(parquet_files.SUFFIX)]
        if parquet and not any(is_called_image(entry.key) for entry in self.entries):
            return parquet_files.ParquetImages(self.store, parquet)
        return archives.LooseFiles(self.store, {entry.key: entry.size for entry in self.entries}, self.unreadable)


def _listed(store: Store, stop: Stop) -> FileSet:
    reader = interruptible(store, stop)
    entries, unreadable = loose_files(store, reader.list())
    return FileSet(reader, entries, unreadable)


def single_files(plain: str, options: StorageOptions, stop: Stop) -> FileSet | None:
    """The Parquet file at an address, or those of a data set of the Hugging Face Hub; None for other addresses.

    Raises BadDataError for a missing one, Preempted and what the store raises.
    """
    if match := _HUB.fullmatch(plain):
        return _hub_files(match, options, stop)
    if not plain.partition("?")[0].endswith(parquet_files.SUFFIX) or Path(plain).is_dir():
        return None
    parent, key = split_uri(plain)
    store = interruptible(open_store(parent, options), stop)
    return FileSet(store, [_entry(store, key)])


def _entry(store: Store, key: str) -> Entry:
    """An object whose parts can be read. Raises BadDataError."""
    entry = store.stat(key)
    if entry is None:
        raise missing_object(store, key, f"{store.uri}/{key.partition('?')[0]}", "--data")
    if not entry.version or entry.size == UNKNOWN_SIZE:
        raise BadDataError(
            f"{store.uri}/{key.partition('?')[0]} may change unseen, as its server reports no version of it: download "
            "it first."
        )
    return entry


def _hub_files(address: re.Match[str], options: StorageOptions, stop: Stop) -> FileSet:
    """The Parquet files that the Hub has of a data set, https://huggingface.co/docs/dataset-viewer/parquet."""
    host, name = address.groups()
    store, listing = interruptible(open_store(host, options), stop), f"api/datasets/{name}/parquet"
    try:
        configurations = json.loads(store.read(listing))
        [files] = [configurations["default"]] if "default" in configurations else configurations.values()
        keys = [str(url).removeprefix(f"{host}/") for urls in files.values() for url in urls]
    except (ValueError, AttributeError, TypeError):
        raise BadDataError(
            f"{host}/{listing} lists no Parquet files, or those of several configurations: give --data the folder or "
            "the address of the files."
        ) from None
    return FileSet(store, [_entry(store, key) for key in sorted(keys)])


def _loose_files(files: FileSet, uri: str, expected: str | None) -> DataSource:
    if not files.entries:
        raise BadDataError(f"{uri} holds no files: check --data.")
    facts = ((entry.key, entry.size, entry.version) for entry in files.entries)
    listing = json.dumps([*facts, *files.unreadable.items()])
    identity = hashlib.sha256(f"{uri}{listing}".encode(errors="backslashreplace")).hexdigest()
    return DataSource(
        as_utf8(uri), identity, expected, lambda: identity, lambda: identity, files.open, is_archive=False
    )


def _archive(
    uri: str, expected: str | None, cache_dir: Path, options: StorageOptions, stop: Stop, *, shown: str
) -> DataSource:
    parent, key = split_uri(uri)
    store = open_store(parent, options)
    entry = interruptible(store, stop).stat(key)
    if entry is None:
        raise missing_object(store, key, shown, "--data")
    download = Download(store, entry, as_utf8(shown), archive_name(uri, store, key), cache_dir, stop, expected)
    draft, remote = (download.draft_key, download) if download.is_streamable else (download.digest(), None)
    source = DataSource(
        as_utf8(shown),
        draft,
        expected,
        download.known_digest,
        download.digest,
        download.open,
        is_archive=True,
        archive=download,
        download=remote,
    )
    if digest := download.known_digest():
        source.verify(digest)
    return source
