"""Decodes every image of a container into one file of pixels, and goes on where an earlier job was broken off.

What is done stands in a journal beside the pixels: a row is believed if its pixels still have the hash that it tells.
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

from inat_job import events, signals
from inat_job.data import layout, pixel_file
from inat_job.data.cache_index import FORMAT, PIXELS
from inat_job.data.layout import ImageFile
from inat_job.data.pixel_file import PixelFile
from inat_job.events import Progress
from inat_job.host import cpu
from inat_job.ingest.container import Container, Load
from inat_job.ingest.decode import Rejected, decode
from inat_job.signals import Stop

ROWS = "rows.jsonl"
_TICK_S = 0.1


@dataclass(frozen=True)
class Decoded:
    """What is known of one image after decoding: its hash and size, and its row's hash, or why it was rejected."""

    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    pixels: str = ""
    reason: str | None = None


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
    """Decode on all cores straight into `folder`; Pillow lets go of the interpreter while it decodes.

    With `verify`, what an earlier job did is believed only of a image whose bytes still have the hash that is told.
    `show` is called with how many are done. Raises OSError for a disk that is too small, before the work, and
    Preempted: what is done by then is found there the next time.
    """
    rows = {image.name: row for row, image in enumerate(images) if layout.is_text(image.name)}
    results = [
        Decoded(reason="missing from the archive" if image.name in rows else "a name that is not UTF-8")
        for image in images
    ]
    with pixel_file.create(folder / PIXELS, len(images), side) as pixels:
        journal = _Journal(folder / ROWS, images, side)
        done = journal.done(pixels, stop)
        for row, result in done.items():
            results[row] = result
        missing = rows if verify else {name: row for name, row in rows.items() if row not in done}
        show = show or events.progress("prepare")
        with journal, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # Pillow's remarks on odd metadata

            def work(name: str, read: Load) -> None:
                row = missing[name]
                results[row] = _decode(journal, done, pixels, side, row, read)

            for count in _on_all_cores(work, container.load(missing), stop):
                show(len(rows) - len(missing) + count, len(images))
    return results


class _Journal:
    """The rows that are done, a line each under a header that says of which images they are rows."""

    def __init__(self, path: Path, images: Sequence[ImageFile], side: int) -> None:
        listed = json.dumps([(image.id, image.name) for image in images])
        self._path, self._lock = path, threading.Lock()
        self._header = f"{FORMAT} {side} {hashlib.sha256(listed.encode()).hexdigest()}"

    def done(self, pixels: PixelFile, stop: Stop) -> dict[int, Decoded]:
        """What an earlier job did of these very images, as far as it is still there; the journal then says that."""
        lines = self._path.read_text(errors="replace").splitlines() if self._path.exists() else []
        kept = {}
        if lines[:1] == [self._header]:
            with ThreadPoolExecutor(cpu.available_cpus()) as pool:
                kept = dict(filter(None, pool.map(partial(_believed, pixels, stop), lines[1:])))
        anew = self._path.with_suffix(".new")  # a kill leaves the old one
        anew.write_text("".join([f"{self._header}\n", *(_line(row, result) for row, result in kept.items())]))
        anew.replace(self._path)
        return kept

    def add(self, row: int, result: Decoded) -> None:
        """Note a row. Any thread may; a kill costs the last few of them."""
        with self._lock:
            self._file.write(_line(row, result))

    def __enter__(self) -> "_Journal":
        self._file = self._path.open("a")
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _line(row: int, result: Decoded) -> str:
    said = json.dumps([row, result.sha256, result.size, result.pixels, result.reason])
    return f"{zlib.crc32(said.encode())} {said}\n"


def _believed(pixels: PixelFile, stop: Stop, line: str) -> tuple[int, Decoded] | None:
    """Row and result of a line, if it is whole and the row's pixels are those that it tells of. Raises Preempted."""
    signals.check(stop, "checking what was prepared before")
    crc, _, said = line.partition(" ")
    if crc != str(zlib.crc32(said.encode())):
        return None
    row, sha256, (width, height), hashed, reason = json.loads(said)
    result = Decoded(sha256, (width, height), hashed, reason)
    return (row, result) if reason is not None or pixels.hash(row) == hashed else None


def _on_all_cores(work: Callable[[str, Load], None], loads: Iterator[tuple[str, Load]], stop: Stop) -> Iterator[int]:
    """Work on each image; yields now and then, and at the end, how many are done. Raises what `work` does, Preempted.

    The threads help themselves: one that gave each its image would want Python's lock as often as they do.
    """
    turn, halted, finished = threading.Lock(), threading.Event(), list[str]()

    def labour() -> None:
        try:
            while not halted.is_set():
                signals.check(stop, "decoding the images")
                with turn:
                    name, read = next(loads, (None, None))
                if name is None or read is None:
                    return
                work(name, read)
                finished.append(name)
        except BaseException:
            halted.set()
            raise

    with ThreadPoolExecutor(cpu.available_cpus()) as pool:
        crew = [pool.submit(labour) for _ in range(cpu.available_cpus())]
        try:
            while wait(crew, _TICK_S, FIRST_EXCEPTION).not_done and not halted.is_set():
                yield len(finished)
        finally:
            halted.set()
    for member in crew:
        member.result()
    yield len(finished)


def _decode(
    journal: _Journal, done: Mapping[int, Decoded], pixels: PixelFile, side: int, row: int, read: Load
) -> Decoded:
    """Decode one image into its row and note it, unless an earlier job did so with the very same bytes."""
    try:
        data = read()
        sha256 = hashlib.sha256(data).hexdigest()
        if row in done and done[row].sha256 == sha256:
            return done[row]
        square, size = decode(data, side)
        pixels.write(row, square)
        result = Decoded(sha256, size, hashlib.sha256(square.data).hexdigest())
    except Rejected as reason:
        result = Decoded(reason=str(reason))
    journal.add(row, result)
    return result
