"""Decodes every picture of a container into one file of pixels, and goes on where an earlier job was broken off.

What is done stands in a journal beside the pixels: a row is believed if its pixels still have the CRC that it tells.
"""

import hashlib
import json
import os
import threading
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from inat_job import events, signals
from inat_job.data import layout
from inat_job.data.decode import Rejected, decode
from inat_job.data.index import FORMAT, PIXELS
from inat_job.data.layout import Picture
from inat_job.data.members import Container, Held, Load
from inat_job.events import Progress
from inat_job.platforms import processors
from inat_job.signals import Stop

ROWS = "rows.jsonl"
_IN_FLIGHT, _MOST_HELD = 64, 2**28
"""Pictures that are read ahead, and the bytes that they may have, so that a stream's don't pile up in memory."""


@dataclass(frozen=True)
class Decoded:
    """What is known of one picture after decoding: its content hash and size, or why it was rejected."""

    sha256: str = ""
    size: tuple[int, int] = (0, 0)
    reason: str | None = None


def decode_all(
    container: Container,
    pictures: Sequence[Picture],
    folder: Path,
    side: int,
    stop: Stop,
    *,
    verify: bool = False,
    show: Progress | None = None,
) -> Sequence[Decoded]:
    """Decode on all cores straight into `folder`; Pillow lets go of the interpreter while it decodes.

    With `verify`, what an earlier job did is believed only of a picture whose bytes still have the hash that is told.
    `show` is called with how many are done. Raises OSError for a disk that is too small, before the work, and
    Preempted: what is done by then is found there the next time.
    """
    pixels = _pixels(folder / PIXELS, (len(pictures), side, side, 3))
    rows = {picture.name: row for row, picture in enumerate(pictures) if layout.is_text(picture.name)}
    results = [
        Decoded(reason="missing from the archive" if picture.name in rows else "a name that is not UTF-8")
        for picture in pictures
    ]
    journal = _Journal(folder / ROWS, pictures, side)
    done = journal.done(pixels)
    for row, result in done.items():
        results[row] = result
    missing = rows if verify else {name: row for name, row in rows.items() if row not in done}
    show, count = show or events.progress("prepare"), len(rows) - len(missing)
    with journal, warnings.catch_warnings(), ThreadPoolExecutor(processors.available()) as pool:
        warnings.simplefilter("ignore", UserWarning)  # Pillow's remarks on odd metadata
        work = partial(_work, journal, done, pixels)
        for row, result in _in_parallel(pool, container.load(missing), missing, work):
            results[row] = result
            count += 1
            show(count, len(pictures))
            signals.check(stop, "decoding the pictures")
    pixels.flush()
    return results


class _Journal:
    """The rows that are done, a line each under a header that says of which pictures they are rows."""

    def __init__(self, path: Path, pictures: Sequence[Picture], side: int) -> None:
        listed = json.dumps([(picture.id, picture.name) for picture in pictures])
        self._path, self._lock = path, threading.Lock()
        self._header = f"{FORMAT} {side} {hashlib.sha256(listed.encode()).hexdigest()}"

    def done(self, pixels: np.ndarray) -> dict[int, Decoded]:
        """What an earlier job did of these very pictures, as far as it is still there; the journal then says that."""
        lines = self._path.read_text(errors="replace").splitlines() if self._path.exists() else []
        kept = {}
        if lines[:1] == [self._header]:
            kept = dict(filter(None, (_believed(line, pixels) for line in lines[1:])))
        with self:
            self._file.truncate(0)
            self._file.write(self._header + "\n")
            for row, result in kept.items():
                self.add(row, result, pixels[row])
        return kept

    def add(self, row: int, result: Decoded, pixels: np.ndarray) -> None:
        """Note a row; in one write, so that a kill tears no more than the last line. Any thread may."""
        line = json.dumps([row, result.sha256, result.size, result.reason, _crc(row, result, pixels)])
        with self._lock:
            self._file.write(line + "\n")

    def __enter__(self) -> "_Journal":
        self._file = self._path.open("a", buffering=1)
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def _believed(line: str, pixels: np.ndarray) -> tuple[int, Decoded] | None:
    """Row and result of a line, if it is whole and the row's pixels are those that it tells of."""
    try:
        row, sha256, (width, height), reason, crc = json.loads(line)
        whole = type(row) is int and 0 <= row < len(pixels) and isinstance(sha256, str)
        whole = whole and type(width) is type(height) is int and isinstance(reason, str | None)
    except (ValueError, TypeError, RecursionError):
        return None
    result = Decoded(sha256, (width, height), reason)
    return (row, result) if whole and _crc(row, result, pixels[row]) == crc else None


def _crc(row: int, result: Decoded, pixels: np.ndarray) -> int:
    """Of what is said of a row and, unless it was rejected, of its pixels."""
    said = zlib.crc32(json.dumps([row, result.sha256, result.size, result.reason]).encode())
    return said if result.reason is not None else zlib.crc32(np.ascontiguousarray(pixels).data, said)


def _pixels(path: Path, shape: tuple[int, ...]) -> Any:
    """The file, what is in it kept, with all of its space: a sparse one would end the job by SIGBUS on a full disk.

    Raises OSError.
    """
    size = int(np.prod(shape))
    with path.open("ab") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            path.unlink()
            raise
        file.truncate(size)
    return np.memmap(path, dtype=np.uint8, mode="r+", shape=shape)


def _in_parallel(
    pool: ThreadPoolExecutor,
    loads: Iterator[tuple[str, Load]],
    rows: Mapping[str, int],
    work: Callable[[int, Load], Decoded],
) -> Iterator[tuple[int, Decoded]]:
    """Row and result as they come."""
    flying: deque[tuple[int, int, Future[Decoded]]] = deque()
    try:
        for name, read in loads:
            row, held = rows[name], len(read.data) if isinstance(read, Held) else 0
            flying.append((row, held, pool.submit(work, row, read)))
            while len(flying) > _IN_FLIGHT or sum(held for _, held, _ in flying) > _MOST_HELD:
                row, _, future = flying.popleft()
                yield row, future.result()
        for row, _, future in flying:
            yield row, future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # who is stopped doesn't wait for what is not begun


def _work(journal: _Journal, done: Mapping[int, Decoded], pixels: np.ndarray, row: int, read: Load) -> Decoded:
    """Decode one picture into its row and note it, unless an earlier job did so with the very same bytes."""
    try:
        data = read()
        sha256 = hashlib.sha256(data).hexdigest()
        if row in done and done[row].sha256 == sha256:
            return done[row]
        pixels[row], size = decode(data, pixels.shape[1])
        result = Decoded(sha256, size)
    except Rejected as reason:
        result = Decoded(reason=str(reason))
    journal.add(row, result, pixels[row])
    return result
