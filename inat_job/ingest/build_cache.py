"""Builds the decoded cache: every image is read, hashed, decoded and squashed once; one rename publishes the result."""

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from inat_job import events, signals
from inat_job.address import as_utf8
from inat_job.data import layout, pixel_file, splits
from inat_job.data.cache_index import FORMAT, PIXELS, Cache, CacheIndex, load, load_trusted
from inat_job.data.layout import Arrangement, ImageFile
from inat_job.errors import BadDataError, ConflictError, JobError, Preempted
from inat_job.events import Progress
from inat_job.ingest import archives
from inat_job.ingest.container import DAMAGED, REPEATED, DamagedArchiveError, links
from inat_job.ingest.data_source import DataSource
from inat_job.ingest.decode_all import ROWS, Decoded, decode_all
from inat_job.signals import Stop
from inat_job.storage.cache_locks import cache_errors, hold_folder, lock
from inat_job.storage.disk import megabytes, remove_link
from inat_job.storage.partial_download import PartialDownload

DETAIL = 128
"""Pixels that a cached square has beyond the network's input, at most, for random crops to be sharp."""

_WAITING = "waiting for another job that prepares the same images"


@dataclass(frozen=True)
class _Results:
    """The images, each with its result, and the names of the files that are not used, with the reason."""

    images: Sequence[ImageFile]
    decoded: Sequence[Decoded]
    skipped: Mapping[str, str]

    @property
    def is_damaged(self) -> bool:
        reasons = (*(each.reason or "" for each in self.decoded), *self.skipped.values())
        return any(reason.startswith(DAMAGED) for reason in reasons)


def cache_side(image_size: int) -> int:
    """Side of the cached squares for an input of `image_size` pixels, a multiple of eight.

    Of twice the input, a crop with a quarter of an image's area has as many pixels as the input. At more
    than 128 px that would take up too much memory.
    """
    return 8 * math.ceil((image_size + min(image_size, DETAIL)) / 8)


def prepare(
    source: DataSource,
    cache_dir: Path,
    image_size: int,
    max_broken: float,
    stop: Stop,
    on_downloaded: Callable[[], None] = lambda: None,
) -> Cache:
    """The cache of a source at this geometry, built if it does not exist.

    A remote zip is decoded during its download; `on_downloaded` is called, maybe more than once, when the download has
    ended. Of several jobs at once one builds, and the others wait for it. Raises BadDataError for an unusable data set
    or a share of unreadable images above `max_broken`, ConflictError if the cache folder is too small or cannot be
    written, Preempted, and what the store raises.
    """
    side = cache_side(image_size)
    cache = _load_published(source, cache_dir, side, stop, on_downloaded)
    if cache is None:
        draft = _folder(cache_dir, source.draft_key, side, source.arrangement)
        with lock(draft.with_suffix(".lock"), cache_dir, stop, _WAITING), cache_errors(cache_dir), _memory_errors():
            cache = _load_published(source, cache_dir, side, stop, on_downloaded) or _build(
                source, cache_dir, draft.with_suffix(".tmp"), side, max_broken, stop, on_downloaded
            )
    # The same images may have been prepared from another source; messages name this run's.
    cache = replace(cache, index=replace(cache.index, source=source.uri))
    _check_rejected(cache.index, max_broken)
    if not source.is_archive:  # whose own digest was verified
        source.verify(cache.index.digest)
    return cache


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise ConflictError("Too little memory to decode images: give the job more, or fewer processors.") from error


def published_index(cache_dir: Path, digest: str, image_size: int, arrangement: Arrangement) -> CacheIndex | None:
    """The index of a source's images, if they are decoded at this geometry."""
    cache = load_trusted(_folder(cache_dir, digest, cache_side(image_size), arrangement))
    return cache.index if cache else None


def unfinished_bytes(cache_dir: Path) -> int:
    """Bytes on disk of unfinished pixel files, which the next attempt continues."""
    return sum(512 * path.stat().st_blocks for path in cache_dir.glob(f"prepared/*.tmp/{PIXELS}"))


def _folder(cache_dir: Path, name: str, side: int, arrangement: Arrangement) -> Path:
    key = f"{name} {side} {FORMAT}{arrangement.key}"
    return cache_dir / "prepared" / hashlib.sha256(key.encode()).hexdigest()[:24]


def _load_published(
    source: DataSource, cache_dir: Path, side: int, stop: Stop, on_downloaded: Callable[[], None]
) -> Cache | None:
    identity = source.known_identity()
    if identity is None:
        return None
    on_downloaded()
    return load(_folder(cache_dir, identity, side, source.arrangement), stop)


def _build(
    source: DataSource,
    cache_dir: Path,
    unfinished: Path,
    side: int,
    max_broken: float,
    stop: Stop,
    on_downloaded: Callable[[], None],
) -> Cache:
    results = _decode_during_download(source, unfinished, side, stop, on_downloaded)
    identity = source.identify()
    on_downloaded()
    if source.is_archive:
        source.verify(identity)
    with _publishing(_folder(cache_dir, identity, side, source.arrangement), cache_dir, stop) as cache:
        if cache is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
            _note(source, cache.index)
            return cache
    results = results or _decode_intact(source, unfinished, side, stop)
    folder = _folder(cache_dir, source.identify(), side, source.arrangement)
    index = _index(source, results, side, unfinished / PIXELS)
    try:
        _check_rejected(index, max_broken)
    except BadDataError:
        shutil.rmtree(unfinished)  # gigabytes that no job may ever need again
        raise
    index.save(unfinished)
    (unfinished / ROWS).unlink()
    held = hold_folder(unfinished)  # the hold survives the rename
    with _publishing(folder, cache_dir, stop) as cache:
        if cache is None:
            unfinished.replace(folder)
        else:
            shutil.rmtree(unfinished)
            held = cache.held
    _note(source, index)
    return Cache(folder, index, held)


def _note(source: DataSource, index: CacheIndex) -> None:
    """Note the digest of an archive for later runs, unless it has damage, which another download might not have."""
    if source.archive and not any(each["reason"].startswith(DAMAGED) for each in index.rejected):
        source.archive.note()


@contextmanager
def _publishing(folder: Path, cache_dir: Path, stop: Stop) -> Iterator[Cache | None]:
    """The published cache in `folder`, if any, under a lock: jobs may prepare the same images from several sources."""
    with lock(folder.parent / "publish.lock", cache_dir, stop, "waiting for another job that publishes its images"):
        cache = load(folder, stop)
        if cache is None:
            shutil.rmtree(folder, ignore_errors=True)  # a damaged cache
        yield cache


def _decode_intact(source: DataSource, unfinished: Path, side: int, stop: Stop) -> _Results:
    """The images; an archive with damage is downloaded once more, and decoded again if its bytes differ now."""
    renew = source.archive.renew if source.archive else lambda: False
    try:
        results = _decode(source, source.open(), unfinished, side, stop)
        if not results.is_damaged or not renew():
            return results
    except DamagedArchiveError:
        if not renew():
            raise
    return _decode(source, source.open(), unfinished, side, stop)


def _decode(
    source: DataSource,
    container: archives.Container,
    unfinished: Path,
    side: int,
    stop: Stop,
    incoming: PartialDownload | None = None,
    show: Progress | None = None,
) -> _Results:
    images = layout.find_images(container.names(), source.uri, stop, links(container.skipped()), source.arrangement)
    source.check_listed(images)
    remove_link(unfinished)
    unfinished.mkdir(exist_ok=True)
    _check_disk(unfinished, len(images) * side * side * 3 + (incoming.bytes_missing() if incoming else 0))
    decoded = decode_all(container, images, unfinished, side, stop, verify=source.download is not None, show=show)
    return _Results(images, decoded, _skipped(container, images, source.arrangement))


def _decode_during_download(
    source: DataSource, unfinished: Path, side: int, stop: Stop, on_downloaded: Callable[[], None]
) -> _Results | None:
    """The images of a remote archive, decoded while it is downloaded; None if that is impossible or unnecessary.

    The results count only if the bytes that they came from are those that are hashed in the end.
    """
    download, show = source.download, events.progress("prepare")
    if download is None or source.known_identity() is not None:  # a second download must match the known digest first
        return None
    incoming = PartialDownload(lambda: signals.check(stop, "waiting for the data set"))

    def progress(done: int, total: int) -> None:
        if incoming.is_complete():
            on_downloaded()
            show(done, total)

    results = None
    with closing(incoming):
        with download.in_background(incoming):
            try:
                container = archives.open_incoming(download.path, incoming, stop)
                results = _decode(source, container, unfinished, side, stop, incoming, progress)
            except Preempted:
                raise
            except (JobError, OSError):  # only the complete archive can tell what it means
                pass
        source.identify()
        return results if incoming.is_now(download.path) else None


def _skipped(container: archives.Container, images: Sequence[ImageFile], arrangement: Arrangement) -> dict[str, str]:
    """The files that are no images of the data set, with the reason, except for known litter.

    One whose name is damaged may have been an image.
    """
    used = {image.name for image in images}
    unused = "not in --labels" if arrangement.labels else "not in a class folder"
    reasons = dict.fromkeys((name for name in container.names() if name not in used), unused)
    for name, reason in container.skipped(used).items():
        if name not in used or reason.startswith((REPEATED, DAMAGED)):
            reasons[name] = reason
    return {
        name: reason for name, reason in reasons.items() if reason.startswith(DAMAGED) or not layout.is_ignored(name)
    }


def _index(source: DataSource, results: _Results, side: int, path: Path) -> CacheIndex:
    images, decoded = results.images, results.decoded
    lost = [(image, each.reason) for image, each in zip(images, decoded, strict=True) if each.reason is not None]
    sidecars = {image.name: f"a sidecar, {reason}" for image, reason in lost if layout.is_sidecar(image.name)}
    skipped = {**results.skipped, **sidecars}
    damaged = {name: skipped.pop(name) for name, reason in results.skipped.items() if reason.startswith(DAMAGED)}
    kept = [row for row, each in enumerate(decoded) if each.reason is None]
    share = None
    if any(image.split == layout.UNSPLIT for image in images):
        share = splits.TEST_SHARE if source.arrangement.test_share is None else source.arrangement.test_share
        images = _split(images, decoded, kept, share)
        kept.sort(key=lambda row: images[row].id)
    if kept != [*range(len(images))]:
        with pixel_file.open_existing(path, len(images), side, writable=True) as pixels:
            pixels.keep(kept)
    classes = layout.class_names(images)
    label_of = {name: label for label, name in enumerate(classes)}
    hashes = tuple(decoded[row].sha256 for row in kept)
    ids = tuple(images[row].id for row in kept)
    return CacheIndex(
        source=source.uri,
        digest=(None if source.arrangement.key else source.digest) or _content_digest(ids, hashes),
        side=side,
        classes=classes,
        ids=ids,
        labels=tuple(label_of[images[row].label] for row in kept),
        splits=tuple(images[row].split for row in kept),
        sizes=tuple(decoded[row].size for row in kept),
        hashes=hashes,
        rejected=(
            *({"id": image.id, "reason": reason} for image, reason in lost if image.name not in sidecars),
            *({"id": as_utf8(name), "reason": reason} for name, reason in sorted(damaged.items())),
        ),
        skipped=tuple({"name": as_utf8(name), "reason": skipped[name]} for name in sorted(skipped)),
        blank=tuple(images[row].id for row in kept if decoded[row].blank),
        pixels_sha256=pixel_file.digest(decoded[row].pixels for row in kept),
        test_share=share,
    )


def _split(
    images: Sequence[ImageFile], decoded: Sequence[Decoded], kept: Sequence[int], share: float
) -> list[ImageFile]:
    """The images with the `kept` ones split into train and test by their contents."""
    number_of = {name: number for number, name in enumerate(layout.class_names(images))}
    labels = [number_of[images[row].label] for row in kept]
    held_out = dict(zip(kept, splits.test([decoded[row].sha256 for row in kept], labels, share), strict=True))
    return [
        image.assigned(layout.TEST if held_out[row] else layout.TRAIN) if row in held_out else image
        for row, image in enumerate(images)
    ]


def _content_digest(ids: Sequence[str], hashes: Sequence[str]) -> str:
    lines = (f"{name} {content}\n" for name, content in zip(ids, hashes, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _check_rejected(index: CacheIndex, max_broken: float) -> None:
    """Raise BadDataError if too many images were rejected, or a class has no image left in a split."""
    total = len(index.ids) + len(index.rejected)
    if len(index.rejected) > math.floor(max_broken * total):
        first = index.rejected[0]
        raise BadDataError(
            f"{len(index.rejected)} of {total} images of {index.source} cannot be read, first {first['id']} "
            f"({first['reason']}): fix them, or raise --max-broken, which is {max_broken:g}."
        )
    present = set(zip(index.splits, index.labels, strict=True))
    for split in (layout.TRAIN, layout.TEST):
        for label, name in enumerate(index.classes):
            if (split, label) not in present:
                advice = "" if index.test_share is None else ": a class needs two different ones for train and test"
                raise BadDataError(f"{index.source} has no readable image of class {name} in {split}{advice}.")


def _check_disk(unfinished: Path, size: int) -> None:
    """Raise ConflictError if the pixels, `size` bytes less those already there, do not fit on the disk."""
    pixels = unfinished / PIXELS
    needed = size - (512 * pixels.stat().st_blocks if pixels.exists() else 0)
    free = shutil.disk_usage(unfinished).free
    if needed > free:
        raise ConflictError(
            f"--cache-dir {unfinished.parents[1]} has {megabytes(free)} free, "
            f"and the decoded images need {megabytes(needed)}: free some space, or choose another folder."
        )
