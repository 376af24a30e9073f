"""A look at a data set before a job: that it can be read, what is in it, and how much of the disk it will take.

Of an archive only its ends are read: a zip's directory stands at its end, so that a wrong layout or half an upload is
known before gigabytes are fetched.
"""

import io
import struct
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from inat_job.data import layout
from inat_job.errors import BadDataError, PreconditionFailed, TransientError
from inat_job.ingest import archives, build_cache, data_source
from inat_job.ingest.demo import CLASSES, TEST_EACH, TRAIN_EACH
from inat_job.ingest.download import Download
from inat_job.options import public_uri
from inat_job.signals import never
from inat_job.storage import Entry, StorageOptions, Store, open_store, split_uri
from inat_job.storage.base import UNKNOWN_SIZE
from inat_job.storage.disk import disk_errors
from inat_job.storage.local import LocalStore

MOST_LISTED = 20_000
"""Loose files that are listed: twenty requests to S3."""

_TAIL = 4 * 2**20
"""Bytes of a zip's end that are read: they hold the names of some forty thousand images."""

_END_OF_ZIP, _END_WITHIN = b"PK\x05\x06", 22 + 2**16
_FIRST = 512


@dataclass(frozen=True)
class DataSetSummary:
    """What is known of a data set: `text` for people, the bytes that will be fetched, those that the decoded images
    will take, and why less than all is known. None is what is not known."""

    text: str
    fetched: int | None
    decoded: int | None
    doubt: str = ""


def look(uri: str, cache_dir: Path, image_size: int, options: StorageOptions) -> DataSetSummary:
    """Look at `--data`. Raises UsageError, BadDataError, TransientError, and what the store raises."""
    plain, expected = data_source.split(uri)
    if plain == data_source.DEMO:
        count = len(CLASSES) * (TRAIN_EACH + TEST_EACH)
        return DataSetSummary(
            f"{count} images of {len(CLASSES)} classes, made on the spot", 0, _pixels(count, image_size)
        )
    if not plain.startswith(data_source.REMOTE):
        with disk_errors(Path(plain)):
            found = data_source.only_archive(Path(plain)) if Path(plain).is_dir() else Path(plain)
        plain, is_archive = (str(found), True) if found else (plain, False)
    else:
        is_archive = archives.is_archive(plain.partition("?")[0])
    try:
        if is_archive:
            return _archive(plain, expected, cache_dir, image_size, options)
        return _loose(open_store(plain, options), public_uri(plain), image_size)
    except PreconditionFailed as error:
        raise TransientError(f"{public_uri(plain)} changed while it was looked at: try again.") from error


def _loose(store: Store, shown: str, image_size: int) -> DataSetSummary:
    listed = list(store.list(most=MOST_LISTED))
    entries = [entry for entry in listed if not layout.is_litter(entry.key)]
    if not entries:
        raise BadDataError(f"{shown} holds no files: check --data.")
    _read_a_little(store, next((entry for entry in entries if entry.size), entries[0]))
    if len(listed) >= MOST_LISTED:
        return DataSetSummary(
            f"{shown}, {len(entries)} files or more", 0, None, "the rest is not listed before the job"
        )
    return _known(shown, [entry.key for entry in entries], 0, image_size)


def _archive(
    uri: str, expected: str | None, cache_dir: Path, image_size: int, options: StorageOptions
) -> DataSetSummary:
    parent, key = split_uri(uri)
    store, shown = open_store(parent, options), public_uri(uri)
    entry = store.stat(key)
    if entry is None:
        raise BadDataError(f"{shown} does not exist: check --data.")
    download = Download(store, entry, shown, data_source.identity(uri, store, key), cache_dir, never, expected)
    digest = download.known()
    if digest and build_cache.is_published(cache_dir, digest, image_size):
        return DataSetSummary(f"{shown}, decoded in --cache-dir already", 0, 0)
    fetched = 0 if isinstance(store, LocalStore) else max(0, entry.size - _taken(download.place.parent))
    if entry.size == UNKNOWN_SIZE or not entry.version:
        return DataSetSummary(f"{shown}, there", None, None, "its server tells neither size nor version")
    names = _names(store, entry, shown)
    if names is None:
        return DataSetSummary(
            f"{shown}, {entry.size / 1e6:,.0f} MB", fetched, None, "how many images it has shows when it is here"
        )
    return _known(f"{shown}, {entry.size / 1e6:,.0f} MB", names, fetched, image_size)


def _names(store: Store, entry: Entry, shown: str) -> list[str] | None:
    """The names in an archive where its end tells them; it is read a little in any case, to see that it can be."""
    if not archives.is_zip(Path(entry.key.partition("?")[0])):
        _read_a_little(store, entry)
        return None
    tail = store.part(entry, max(0, entry.size - _TAIL), entry.size) if entry.size else b""
    if tail is None:
        return None
    if _END_OF_ZIP not in tail[-_END_WITHIN:]:
        raise BadDataError(f"{shown} does not end as a zip does: upload or fetch it again, whole.")
    try:
        return zipfile.ZipFile(io.BytesIO(tail)).namelist()
    except (zipfile.BadZipFile, ValueError, EOFError, UnicodeError, NotImplementedError, struct.error):
        return None  # its directory is longer; or is damaged, which reading all of it will tell


def _read_a_little(store: Store, entry: Entry) -> None:
    """To be allowed to look at an object is not to be allowed to read it: a KMS key may be refused."""
    if entry.size:
        store.part(entry, 0, min(_FIRST, entry.size))


def _known(shown: str, names: Collection[str], fetched: int, image_size: int) -> DataSetSummary:
    images = layout.find(names, shown)
    text = f"{shown}, {len(images)} images of {len(layout.classes(images))} classes"
    return DataSetSummary(text, fetched, _pixels(len(images), image_size))


def _pixels(count: int, image_size: int) -> int:
    return count * build_cache.cache_side(image_size) ** 2 * 3


def _taken(folder: Path) -> int:
    """Bytes of an earlier, maybe broken fetch."""
    return sum(512 * path.stat().st_blocks for path in folder.glob("*") if path.is_file())
