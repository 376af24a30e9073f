"""The stages from `--data` to a prepared cache: downloading and decoding, each measured alternately with its limit.

The limits are a plain download, and processes that decode and do nothing else.
"""

import hashlib
import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import numpy as np

from inat_job.address import basic_login, quote_login
from inat_job.bench import children
from inat_job.bench.measurement import IMAGES_PER_S, Measurement, rates, time_alternately
from inat_job.data import layout, pixel_file
from inat_job.data.layout import BY_FOLDERS, Arrangement
from inat_job.host import cpu
from inat_job.ingest import build_cache
from inat_job.ingest.archives import open_archive
from inat_job.ingest.data_source import DataSource, find
from inat_job.signals import Stop
from inat_job.storage import Entry, StorageOptions, Store, open_store, split_uri
from inat_job.storage.base import UNKNOWN_SIZE
from inat_job.storage.disk import read_blocks
from inat_job.storage.local import LocalStore

THREADS = 8
RANGE = 2**23
"""Bytes of each range of the plain download."""

_BLOCK = 2**20


def pull(
    uri: str,
    options: StorageOptions,
    image_size: int,
    scratch: Path,
    runs: int,
    stop: Stop,
    arrangement: Arrangement = BY_FOLDERS,
) -> list[Measurement]:
    """Downloading the archive at `uri`, and everything up to a prepared cache; the limit is a plain download."""
    parent, key = split_uri(uri.partition("#")[0])
    store = open_store(parent, options)
    entry = store.stat(key)
    if entry is None or entry.size == UNKNOWN_SIZE:
        return []

    def download() -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            store.get(entry.key, Path(folder) / "archive", stop=stop)

    def download_and_prepare() -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            source = find(uri, Path(folder), options, stop, arrangement)
            build_cache.prepare(source, Path(folder), image_size, 1.0, stop)

    works = {
        "pull": download,
        "both": download_and_prepare,
        "plain": lambda: plain_download(store, entry, scratch / "plain", basic_login(quote_login(uri))),
    }
    seconds = time_alternately(works, runs, least_s=0)
    limit = rates(entry.size / 1e6, seconds["plain"])
    name = "plain read" if isinstance(store, LocalStore) else "plain ranged download"
    return [
        Measurement("pull", "MB/s", rates(entry.size / 1e6, seconds["pull"]), name, limit),
        Measurement("pull and prepare", "MB/s", rates(entry.size / 1e6, seconds["both"]), name, limit),
    ]


def plain_download(store: Store, entry: Entry, path: Path, login: str | None = None) -> None:
    """Download an object to `path` and delete it; a local object is only read. Raises OSError.

    `login` is the Authorization header of a web server.
    """
    if isinstance(store, LocalStore):
        for _ in read_blocks(store.root / entry.key):
            pass
        return
    address = cast(Any, store).address(entry.key)  # which every store has but a local one

    def download(start: int, length: int) -> None:
        request = urllib.request.Request(address)  # noqa: S310
        if length < entry.size:
            request.add_header("Range", f"bytes={start}-{min(start + length, entry.size) - 1}")
        if login:
            request.add_unredirected_header("Authorization", login)
        with closing(urllib.request.urlopen(request)) as response:  # noqa: S310
            while block := response.read(_BLOCK):
                os.pwrite(file.fileno(), block, start)
                start += len(block)

    length = RANGE if entry.version else entry.size
    with path.open("wb") as file, ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(download, range(0, entry.size, length), repeat(length)))
    path.unlink()


def decode(
    source: DataSource, archive: Path, image_size: int, scratch: Path, runs: int, stop: Stop
) -> list[Measurement]:
    """Preparing a local archive; the limit is decoding alone. Hashing and writing are also measured by themselves."""
    count, side = len(layout.find_images(open_archive(archive).names(), source.uri)), build_cache.cache_side(image_size)

    def prepare() -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            build_cache.prepare(source, Path(folder), image_size, 1.0, stop)

    with _bare_decoders(archive, side, "ours") as ours, _bare_decoders(archive, side, "torchvision") as torchvision:
        works = {"prepare": prepare, "ours": ours, "torchvision": torchvision}
        works["hash"] = lambda: _hash(archive.stat().st_size, count, side)
        works["write"] = lambda: _write(scratch / "written", count, side)
        seconds = time_alternately(works, runs, least_s=0)
    limit = ("bare processes that decode", rates(count, seconds["ours"]))
    parts = zip(seconds["prepare"], seconds["hash"], seconds["write"], strict=True)
    rest = tuple(max(all_of_it - hashing - writing, 0.0) for all_of_it, hashing, writing in parts)
    alone = "by itself, on all cores"
    return [
        Measurement("prepare", IMAGES_PER_S, rates(count, seconds["prepare"]), *limit),
        *_without_hash_and_write(rates(count, rest) if all(rest) else (), limit),
        Measurement("hashing in prepare", IMAGES_PER_S, rates(count, seconds["hash"]), note=alone),
        Measurement("writing in prepare", IMAGES_PER_S, rates(count, seconds["write"]), note=alone),
        Measurement(
            "torchvision's decoder", IMAGES_PER_S, rates(count, seconds["torchvision"]), *limit, note="at full size"
        ),
    ]


def _without_hash_and_write(values: tuple[float, ...], limit: tuple[str, tuple[float, ...]]) -> list[Measurement]:
    """Nothing if hashing and writing by themselves took longer than preparing."""
    note = "by subtraction: work done in parallel with decoding is subtracted too"
    return [Measurement("prepare less hashing and writing", IMAGES_PER_S, values, *limit, note=note)] if values else []


@contextmanager
def _bare_decoders(archive: Path, side: int, decoder: str) -> Iterator[Callable[[], None]]:
    """A function that decodes every image once, on all cores, and waits for the end."""
    cores = cpu.available_cpus()
    with ExitStack() as stack:
        group = []
        for first in range(cores):
            arguments = (str(archive.absolute()), str(side), str(first), str(cores), decoder)
            group.append(stack.enter_context(children.line_server(children.module("bare_decode", *arguments))))
        for child in group:
            child.receive()

        def decode_all() -> None:
            for child in group:
                child.send()
            for child in group:
                child.receive()

        yield decode_all


def _hash(archive_bytes: int, count: int, side: int) -> None:
    """Hash as much as prepare does: the bytes of the archive, then each image and each row of pixels."""
    image, row = bytes(archive_bytes // count), bytes(side * side * 3)
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(image)

    def hash_one(_: int) -> None:
        hashlib.sha256(image).hexdigest()
        hashlib.sha256(row).hexdigest()

    _on_all_cores(hash_one, count)


def _write(path: Path, count: int, side: int) -> None:
    """Write as many rows of pixels as prepare does."""
    row = np.zeros((side, side, 3), dtype=np.uint8)
    with pixel_file.create(path, count, side) as file:
        _on_all_cores(lambda number: file.write(number, row), count)
    path.unlink()


def _on_all_cores(work: Callable[[int], object], count: int) -> None:
    def share(first: int) -> None:
        for number in range(first, count, cpu.available_cpus()):
            work(number)

    with ThreadPoolExecutor(cpu.available_cpus()) as pool:
        list(pool.map(share, range(cpu.available_cpus())))
