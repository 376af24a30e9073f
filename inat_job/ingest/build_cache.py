"""Builds the decoded cache: every image read, hashed, decoded and squashed once, then published by one rename."""

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

from inat_job import events, signals
from inat_job.data import layout, pixel_file
from inat_job.data.cache_index import FORMAT, PIXELS, Cache, Index, load
from inat_job.data.layout import ImageFile
from inat_job.errors import BadDataError, ConflictError, JobError, Preempted
from inat_job.events import Progress
from inat_job.ingest import archives
from inat_job.ingest.data_source import DataSource
from inat_job.ingest.decode_all import ROWS, Decoded, decode_all
from inat_job.signals import Stop
from inat_job.storage.cache_locks import cache_errors, hold_folder, lock
from inat_job.storage.partial_download import PartialDownload

MARGIN = 1.15
"""Cache side over the network's input, so that a random crop rarely enlarges."""

_WAITING = "waiting for another job that prepares the same images"
_Done = tuple[Sequence[ImageFile], Sequence[Decoded]]


def cache_side(image_size: int) -> int:
    """Side of the cached squares for an input of `image_size` pixels, a multiple of eight."""
    return max(8 * round(MARGIN * image_size / 8), image_size)


def prepare(
    source: DataSource,
    cache_dir: Path,
    image_size: int,
    max_broken: float,
    stop: Stop,
    whole: Callable[[], None] = lambda: None,
) -> Cache:
    """The cache of a source at this geometry, built if it is not there.

    A zip that is far away is fetched, and decoded as it lands; `whole` is called, maybe more than once, when all
    of it is here. Any number of jobs may ask at once: one builds, the others wait and find it. Raises BadDataError for
    a data set that is unusable or more than `max_broken` unreadable, ConflictError when the cache folder is too small
    or cannot be written, Preempted, and what the store raises.
    """
    side = cache_side(image_size)
    cache = _published(source, cache_dir, side, stop, whole)
    if cache is None:
        draft = _folder(cache_dir, source.draft, side)
        with lock(draft.with_suffix(".lock"), cache_dir, stop, _WAITING), cache_errors(cache_dir), _memory_errors():
            cache = _published(source, cache_dir, side, stop, whole) or _build(
                source, cache_dir, draft.with_suffix(".tmp"), side, max_broken, stop, whole
            )
    # The same images may have been prepared from elsewhere; what is said of them names where this run has them from.
    cache = replace(cache, index=replace(cache.index, source=source.uri))
    _judge(cache.index, max_broken)
    source.verify(cache.index.digest)
    return cache


@contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except MemoryError as error:
        raise ConflictError("Too little memory to decode images: give the job more, or fewer processors.") from error


def is_published(cache_dir: Path, digest: str, image_size: int) -> bool:
    """Whether the images of a source are decoded at this geometry."""
    return _folder(cache_dir, digest, cache_side(image_size)).is_dir()


def drafted(cache_dir: Path) -> int:
    """Bytes that unfinished work takes, which the next attempt takes up."""
    return sum(512 * path.stat().st_blocks for path in cache_dir.glob(f"prepared/*.tmp/{PIXELS}"))


def _folder(cache_dir: Path, name: str, side: int) -> Path:
    return cache_dir / "prepared" / hashlib.sha256(f"{name} {side} {FORMAT}".encode()).hexdigest()[:24]


def _published(source: DataSource, cache_dir: Path, side: int, stop: Stop, whole: Callable[[], None]) -> Cache | None:
    identity = source.known()
    if identity is None:
        return None
    whole()
    return load(_folder(cache_dir, identity, side), stop)


def _build(
    source: DataSource,
    cache_dir: Path,
    unfinished: Path,
    side: int,
    max_broken: float,
    stop: Stop,
    whole: Callable[[], None],
) -> Cache:
    done = _as_it_lands(source, unfinished, side, stop, whole)
    identity = source.identify()
    whole()
    if source.hashed:
        source.verify(identity)
    folder = _folder(cache_dir, identity, side)
    with _publishing(folder, cache_dir, stop) as cache:
        if cache is not None:
            shutil.rmtree(unfinished, ignore_errors=True)
            return cache
    images, decoded = done or _decoded(source, unfinished, side, stop)
    index = _index(source, images, decoded, side, unfinished / PIXELS)
    try:
        _judge(index, max_broken)
    except BadDataError:
        shutil.rmtree(unfinished)  # gigabytes that nobody may ever ask for again
        raise
    index.save(unfinished)
    (unfinished / ROWS).unlink()
    held = hold_folder(unfinished)  # which it stays under its new name
    with _publishing(folder, cache_dir, stop) as cache:
        if cache is None:
            unfinished.replace(folder)
        else:
            shutil.rmtree(unfinished)
            held = cache.held
    return Cache(folder, index, held)


@contextmanager
def _publishing(folder: Path, cache_dir: Path, stop: Stop) -> Iterator[Cache | None]:
    """What stands in a folder, which nobody else touches meanwhile: jobs may prepare the same from different places."""
    with lock(folder.parent / "publish.lock", cache_dir, stop, "waiting for another job that publishes its images"):
        cache = load(folder, stop)
        if cache is None:
            shutil.rmtree(folder, ignore_errors=True)  # a cache that failed its check
        yield cache


def _decoded(source: DataSource, unfinished: Path, side: int, stop: Stop) -> _Done:
    container = source.open()
    images = layout.find(container.names(), source.uri)
    unfinished.mkdir(exist_ok=True)
    _check_disk(unfinished, len(images) * side * side * 3)
    return images, decode_all(container, images, unfinished, side, stop, verify=source.download is not None)


def _as_it_lands(
    source: DataSource, unfinished: Path, side: int, stop: Stop, whole: Callable[[], None]
) -> _Done | None:
    """The images of an archive that is fetched, decoded meanwhile; None if that can't be, and when it is here.

    What came of bytes is believed only if these are the ones that are hashed in the end.
    """
    download, show = source.download, events.progress("prepare")
    if download is None or source.known() is not None:  # then what is fetched has to be what it was
        return None
    landing = PartialDownload(lambda: signals.check(stop, "waiting for the data set"))

    def progress(count: int, total: int) -> None:
        if landing.whole():
            whole()
            show(count, total)

    with closing(landing):
        with download.arriving(landing):
            done = _decoded_early(download.place, landing, source.uri, unfinished, side, stop, progress)
        source.identify()
        return done if download.holds(landing) else None


def _decoded_early(
    path: Path, landing: PartialDownload, uri: str, unfinished: Path, side: int, stop: Stop, show: Progress
) -> _Done | None:
    """None for whatever trouble there is: what it means is told by the whole archive alone."""
    try:
        container = archives.open_landing(path, landing)
        images = layout.find(container.names(), uri)
        unfinished.mkdir(exist_ok=True)
        _check_disk(unfinished, len(images) * side * side * 3 + landing.bytes_missing())
        return images, decode_all(container, images, unfinished, side, stop, verify=True, show=show)
    except Preempted:
        raise
    except (JobError, OSError):
        return None


def _index(source: DataSource, images: Sequence[ImageFile], decoded: Sequence[Decoded], side: int, path: Path) -> Index:
    kept = [row for row, each in enumerate(decoded) if each.reason is None]
    if len(kept) < len(images):
        with pixel_file.existing(path, len(images), side, writable=True) as pixels:
            pixels.keep(kept)
    classes = layout.classes(images)
    number = {name: label for label, name in enumerate(classes)}
    hashes = tuple(decoded[row].sha256 for row in kept)
    ids = tuple(images[row].id for row in kept)
    return Index(
        source=source.uri,
        digest=source.digest or _content_digest(ids, hashes),
        side=side,
        classes=classes,
        ids=ids,
        labels=tuple(number[images[row].label] for row in kept),
        splits=tuple(images[row].split for row in kept),
        sizes=tuple(decoded[row].size for row in kept),
        hashes=hashes,
        rejected=tuple(
            {"id": image.id, "reason": each.reason}
            for image, each in zip(images, decoded, strict=True)
            if each.reason is not None
        ),
        pixels_sha256=pixel_file.digest(decoded[row].pixels for row in kept),
    )


def _content_digest(ids: Sequence[str], hashes: Sequence[str]) -> str:
    lines = (f"{name} {content}\n" for name, content in zip(ids, hashes, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _judge(index: Index, max_broken: float) -> None:
    """Raise BadDataError if too many images were rejected or a class has none left in a split."""
    total = len(index.ids) + len(index.rejected)
    if len(index.rejected) > math.floor(max_broken * total):
        first = index.rejected[0]
        raise BadDataError(
            f"{len(index.rejected)} of {total} images of {index.source} cannot be read, first {first['id']} "
            f"({first['reason']}): mend them, or raise --max-broken, which is {max_broken:g}."
        )
    present = set(zip(index.splits, index.labels, strict=True))
    for split in (layout.TRAIN, layout.TEST):
        for label, name in enumerate(index.classes):
            if (split, label) not in present:
                raise BadDataError(f"{index.source} has no readable image of class {name} in {split}.")


def _check_disk(unfinished: Path, size: int) -> None:
    """Raise ConflictError where the pixels don't fit beside what is there of them already."""
    pixels = unfinished / PIXELS
    need = size - (512 * pixels.stat().st_blocks if pixels.exists() else 0)
    free = shutil.disk_usage(unfinished).free
    if need > free:
        raise ConflictError(
            f"--cache-dir {unfinished.parents[1]} has {free / 1e6:,.0f} MB free, "
            f"and the decoded images need {need / 1e6:,.0f} MB: free some, or name another folder."
        )
