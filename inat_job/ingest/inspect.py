"""Inspects a data set before a job: whether it can be read, what it contains, and how much disk space it will take.

Only the ends of an archive are read: a zip's directory is at its end, so that a wrong layout or a truncated upload is
found before gigabytes are downloaded.
"""

import io
import struct
import zipfile
from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inat_job.address import in_bucket
from inat_job.data import layout, splits
from inat_job.data.layout import BY_FOLDERS, Arrangement
from inat_job.errors import BadDataError, PreconditionFailed, TransientError
from inat_job.ingest import build_cache, data_source, kinds
from inat_job.ingest.container import LINK, composed, links, plain_name
from inat_job.ingest.demo import CLASSES, TEST_EACH, TRAIN_EACH
from inat_job.ingest.download import Download
from inat_job.ingest.zip_directory import cut_off, read_directory
from inat_job.options import public_uri
from inat_job.settings import DataSettings, TrainSettings
from inat_job.signals import Stop, never
from inat_job.storage import Entry, StorageOptions, Store, open_store, split_uri
from inat_job.storage.base import UNKNOWN_SIZE
from inat_job.storage.disk import disk_errors, megabytes
from inat_job.storage.interruptible import interruptible
from inat_job.storage.local import LocalStore, missing_object

MAX_LISTED = 20_000
"""Loose files that are listed: twenty requests to S3."""

_TAIL_BYTES = 4 * 2**20
"""Bytes read from the end of a zip: the directory of some forty thousand images."""

_END_OF_ZIP, _END_WITHIN = b"PK\x05\x06", 22 + 2**16

_TRIES = 3
"""Inspections of an object that changes meanwhile, which one wrong answer of its server may suggest."""


@dataclass(frozen=True)
class DataSetSummary:
    """What is known of a data set: a `text` for people, the bytes to download, the bytes of the decoded images, and why
    not everything is known. None is unknown.

    `training` has the number of training images of each class, or nothing if that is unknown, `validation` that of
    the data set's own validation images, None if it has none.
    """

    text: str
    fetched: int | None
    decoded: int | None
    doubt: str = ""
    training: tuple[int, ...] = ()
    validation: int | None = None

    def check_batch_size(self, train: TrainSettings, data: DataSettings) -> None:
        """Raise ConflictError if there cannot be a full batch."""
        if self.training:
            left = splits.training_count(self.training, train.final, data.val_share, self.validation)
            splits.check_batch_size(train.batch_size, left)


def summarise(
    uri: str,
    cache_dir: Path,
    image_size: int,
    options: StorageOptions,
    stop: Stop = never,
    arrangement: Arrangement = BY_FOLDERS,
) -> DataSetSummary:
    """Inspect `--data`. Raises UsageError, BadDataError, TransientError, Preempted, and what the store raises."""
    plain, expected = data_source.parse_uri(uri)
    if files := data_source.single_files(plain, options, stop):
        return _summary(public_uri(plain), files.open().names(), 0, image_size, {}, arrangement)
    if plain == data_source.DEMO:
        count = len(CLASSES) * (TRAIN_EACH + TEST_EACH)
        text = f"{count} images of {len(CLASSES)} classes, to be generated"
        training = (TRAIN_EACH,) * len(CLASSES)
        return DataSetSummary(text, 0, _pixel_bytes(count, image_size), training=training)
    if not plain.startswith(data_source.REMOTE):
        with disk_errors(Path(plain)):
            found = data_source.only_archive(Path(plain)) if Path(plain).is_dir() else Path(plain)
        plain, is_archive = (str(found), True) if found else (plain, False)
    else:
        is_archive = data_source.is_archive(plain, options, stop)
    for _ in range(_TRIES):
        with suppress(PreconditionFailed):
            if is_archive:
                return _archive(plain, expected, cache_dir, image_size, options, stop, arrangement)
            store = interruptible(open_store(plain, options), stop)
            return _loose_files(store, public_uri(plain), image_size, arrangement)
    raise TransientError(f"{public_uri(plain)} changed {_TRIES} times while it was inspected: try again.")


def _loose_files(store: Store, shown: str, image_size: int, arrangement: Arrangement) -> DataSetSummary:
    listed = list(store.list(most=MAX_LISTED))
    entries, unreadable = data_source.loose_files(store, listed)
    if not entries:
        raise BadDataError(f"{shown} holds no files: check --data.")
    _read_sample(store, next((entry for entry in entries if entry.size), entries[0]))
    if len(listed) >= MAX_LISTED:
        return DataSetSummary(f"{shown}, {len(entries)} files or more", 0, None, "preflight lists no more files")
    linked = links({composed(key): reason for key, reason in unreadable.items()})
    names = data_source.FileSet(store, entries).open().names()
    return _summary(shown, names, 0, image_size, linked, arrangement)


def _archive(
    uri: str,
    expected: str | None,
    cache_dir: Path,
    image_size: int,
    options: StorageOptions,
    stop: Stop,
    arrangement: Arrangement,
) -> DataSetSummary:
    parent, key = split_uri(uri)
    shown, opened = public_uri(uri), open_store(parent, options)
    store = interruptible(opened, stop)
    entry = store.stat(key)
    if entry is None:
        raise missing_object(opened, key, shown, "--data")
    download = Download(opened, entry, shown, data_source.archive_name(uri, opened, key), cache_dir, never, expected)
    digest = download.known_digest()
    if digest and (index := build_cache.published_index(cache_dir, digest, image_size, arrangement)):
        training = tuple(Counter(index.labels[row] for row in index.rows(layout.TRAIN)).values())
        own = len(index.rows(layout.VALIDATION)) or None
        return DataSetSummary(f"{shown}, already decoded in --cache-dir", 0, 0, "", training, own)
    fetched = 0 if isinstance(opened, LocalStore) else max(0, entry.size - _bytes_in(download.path.parent))
    if entry.size == UNKNOWN_SIZE or not entry.version:
        kinds.refuse_page(_read_sample(store, entry), shown)
        return DataSetSummary(f"{shown}, which exists", None, None, "its server reports no size or no version")
    names = _names(store, entry, shown)
    size = f", {megabytes(entry.size)}"
    if names is None:
        return DataSetSummary(
            f"{shown}{size}", fetched, None, "the number of its images is known only after the download"
        )
    return _summary(shown, names, fetched, image_size, links(names), arrangement, size)


def _names(store: Store, entry: Entry, shown: str) -> dict[str, str] | None:
    """The names in an archive, with LINK for links, or None if its end does not list them.

    Reads some of the archive in any case, as a test.
    """
    name = Path(entry.key if in_bucket(store.uri) else entry.key.partition("?")[0]).name
    sample = _read_sample(store, entry)
    if not kinds.is_zip(name, sample, shown):
        if other := kinds.mismatch(name, sample):
            raise BadDataError(f"{shown} is {other}.")
        return None
    tail = store.read_range(entry, max(0, entry.size - _TAIL_BYTES), entry.size)
    if tail is None:
        return None
    if _END_OF_ZIP not in tail[-_END_WITHIN:]:
        other = kinds.mismatch(name, sample)
        raise BadDataError(f"{shown} is {other}." if other else cut_off(shown, entry.size, sample))
    try:
        directory = read_directory(io.BytesIO(tail), len(tail), Path(shown), entry.size - len(tail))
        files = [member for _, member in directory.members(never) if not member.is_folder]
        return {plain_name(member.name, Path(shown)): LINK if member.is_link else "" for member in files}
    except (zipfile.BadZipFile, ValueError, EOFError, UnicodeError, NotImplementedError, struct.error):
        return None  # its directory is longer than the tail, or damaged, which reading all of it will show


def _read_sample(store: Store, entry: Entry) -> bytes:
    """The first bytes. Permission to stat an object is not permission to read it: a KMS key may be refused."""
    size = kinds.HEAD_BYTES if entry.size == UNKNOWN_SIZE else min(kinds.HEAD_BYTES, entry.size)
    return (store.read_range(entry, 0, size) or b"") if size else b""


def _summary(
    shown: str,
    names: Collection[str],
    fetched: int,
    image_size: int,
    linked: Mapping[str, str],
    arrangement: Arrangement,
    size: str = "",
) -> DataSetSummary:
    images = layout.find_images(names, shown, links=linked, arrangement=arrangement)
    text = f"{shown}{size}, {len(images)} images of {len(layout.class_names(images))} classes"
    if any(image.split == layout.UNSPLIT for image in images):
        share = splits.TEST_SHARE if arrangement.test_share is None else arrangement.test_share
        text += f", of which {share:.0%} will be split off for the test"
    counts = layout.training_counts(images, arrangement.test_share)
    decoded = _pixel_bytes(len(images), image_size)
    return DataSetSummary(text, fetched, decoded, "", counts, layout.validation_count(images))


def _pixel_bytes(count: int, image_size: int) -> int:
    return count * build_cache.cache_side(image_size) ** 2 * 3


def _bytes_in(folder: Path) -> int:
    """Bytes on disk of an earlier, maybe interrupted download."""
    return sum(512 * path.stat().st_blocks for path in folder.glob("*") if path.is_file())
