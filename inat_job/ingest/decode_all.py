"""Decodes every image of a container into one pixel file, and resumes an interrupted job's work.

Finished rows are recorded in a journal beside the pixels; a row is reused only if its pixels still have the hash that
the journal records.
"""

import hashlib
import json
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from inat_job import events, signals
from inat_job.data import pixel_file
from inat_job.data.cache_index import FORMAT, PIXELS
from inat_job.data.layout import ImageFile
from inat_job.data.layout_errors import is_text
from inat_job.data.pixel_file import PixelFile
from inat_job.events import Progress
from inat_job.host import cpu
from inat_job.ingest.container import Container, Load
from inat_job.ingest.decode import NEARLY, Rejected, decode
from inat_job.signals import Stop
from inat_job.storage.disk import open_unlinked, write_atomic

ROWS = "rows.jsonl"
_TICK_S = 0.1


@dataclass(frozen=True)
class Decoded:
    """One image after decoding: the SHA-256 of its file, its (width, height), the SHA-256 of its row of pixels and
    whether they are all of one colour, or nearly, or the reason for its rejection.
    """

    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    pixels: str = ""
    reason: str | None = None
    blank: bool = False


def decode_all(
    container: Container,
    images: Sequence[ImageFile],
    folder: Path,
    side: int,
    stop: Stop,
    *,
    verify: bool = False,
    show: Progress | None = None,
) -> Sequence[Decoded]:
    """Decode on all cores straight into `folder`; Pillow releases the interpreter lock while it decodes.

    With `verify`, an earlier job's row is reused only if the image file still has the recorded hash. `show` is called
    with the number of finished images. Raises OSError for a disk that is too small, before any work, and Preempted;
    finished rows are found there the next time.
    """
    rows = {image.name: row for row, image in enumerate(images) if is_text(image.name)}
    results = [
        Decoded(reason="missing from the archive" if image.name in rows else "its name is not UTF-8")
        for image in images
    ]
    with pixel_file.create(folder / PIXELS, len(images), side) as pixels:
        journal = _RowJournal(folder / ROWS, images, side)
        done = journal.load(pixels, stop)
        for row, result in done.items():
            results[row] = result
        missing = rows if verify else {name: row for name, row in rows.items() if row not in done}
        show = show or events.progress("prepare")
        with journal, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow's remarks on odd metadata

            def work(name: str, load: Load) -> None:
                row = missing[name]
                results[row] = _decode_row(journal, done, pixels, side, row, load)

            for count in _on_all_cores(work, container.load(missing), stop):
                show(len(rows) - len(missing) + count, len(images))
    return results


class _RowJournal:
    """The finished rows, one line each, under a header that identifies the images."""

    def __init__(self, path: Path, images: Sequence[ImageFile], side: int) -> None:
        listed = json.dumps([(image.id, image.name) for image in images])
        self._path, self._lock = path, threading.Lock()
        self._header = f"{FORMAT} {side} {hashlib.sha256(listed.encode()).hexdigest()}"

    def load(self, pixels: PixelFile, stop: Stop) -> dict[int, Decoded]:
        """The intact rows that an earlier job finished for these images; the journal is rewritten to hold just them."""
        lines = self._path.read_text(errors="replace").splitlines() if self._path.exists() else []
        kept = {}
        if lines[:1] == [self._header]:
            with ThreadPoolExecutor(cpu.available_cpus()) as pool:
                kept = dict(filter(None, pool.map(partial(_intact_row, pixels, stop), lines[1:])))
        text = "".join([f"{self._header}\n", *(_line(row, result) for row, result in kept.items())])
        write_atomic(self._path, text.encode(), self._path.with_suffix(".new"))
        return kept

    def add(self, row: int, result: Decoded) -> None:
        """Record a row. Any thread may; a kill loses the last few."""
        with self._lock:
            self._file.write(_line(row, result))

    def __enter__(self) -> "_RowJournal":
        self._file = open_unlinked(self._path, "a")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _line(row: int, result: Decoded) -> str:
    content = json.dumps([row, result.sha256, result.size, result.pixels, result.reason, result.blank])
    return f"{zlib.crc32(content.encode())} {content}\n"


def _intact_row(pixels: PixelFile, stop: Stop, line: str) -> tuple[int, Decoded] | None:
    """Row and result of a line if the line is intact and the row's pixels have the recorded hash. Raises Preempted."""
    signals.check(stop, "checking the images prepared before")
    crc, _, content = line.partition(" ")
    if crc != str(zlib.crc32(content.encode())):
        return None
    row, sha256, (width, height), pixels_sha256, reason, blank = json.loads(content)
    result = Decoded(sha256, (width, height), pixels_sha256, reason, blank)
    return (row, result) if reason is not None or pixels.hash(row) == pixels_sha256 else None


def _on_all_cores(work: Callable[[str, Load], None], loads: Iterator[tuple[str, Load]], stop: Stop) -> Iterator[int]:
    """Work on each image; yields the number of finished ones now and then, and at the end.

    Raises Preempted and what `work` raises. The threads take images from the iterator themselves: a thread that handed
    them out would compete with them for the interpreter lock.
    """
    next_load, halted, finished = threading.Lock(), threading.Event(), list[str]()

    def run() -> None:
        try:
            while not halted.is_set():
                signals.check(stop, "decoding the images")
                with next_load:
                    name, load = next(loads, (None, None))
                if name is None or load is None:
                    return
                work(name, load)
                finished.append(name)
        except BaseException:
            halted.set()
            raise

    with ThreadPoolExecutor(cpu.available_cpus()) as pool:
        futures = [pool.submit(run) for _ in range(cpu.available_cpus())]
        try:
            while wait(futures, _TICK_S, FIRST_EXCEPTION).not_done and not halted.is_set():
                yield len(finished)
        finally:
            halted.set()
    for future in futures:
        future.result()
    yield len(finished)


def _decode_row(
    journal: _RowJournal, done: Mapping[int, Decoded], pixels: PixelFile, side: int, row: int, load: Load
) -> Decoded:
    """Decode one image into its row and record it, unless an earlier job did so from the same bytes."""
    try:
        data = load()
        sha256 = hashlib.sha256(data).hexdigest()
        if row in done and done[row].sha256 == sha256:
            return done[row]
        square, size = decode(data, side)
        pixels.write(row, square)
        blank = bool(np.ptp(square, axis=(0, 1)).max() < NEARLY)
        result = Decoded(sha256, size, hashlib.sha256(square.data).hexdigest(), blank=blank)
    except Rejected as reason:
        result = Decoded(reason=str(reason))
    journal.add(row, result)
    return result
