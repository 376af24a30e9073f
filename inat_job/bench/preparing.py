"""Preparing an archive, against processes that decode and do nothing else, and against torchvision's decoder."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from inat_job.bench import children
from inat_job.bench.measurement import PICTURES, Measured, by_turns, rates
from inat_job.data import layout, pixel_file
from inat_job.host import cpu
from inat_job.ingest import build_cache
from inat_job.ingest.archives import open_archive
from inat_job.ingest.data_source import DataSource
from inat_job.signals import Stop


def decode(source: DataSource, archive: Path, image_size: int, scratch: Path, runs: int, stop: Stop) -> list[Measured]:
    """Preparing an archive that is on this machine; hashing and writing are measured by themselves, too."""
    count, side = len(layout.find_images(open_archive(archive).names(), source.uri)), build_cache.cache_side(image_size)

    def prepared() -> None:
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            build_cache.prepare(source, Path(folder), image_size, 1.0, stop)

    with _bare(archive, side, "ours") as ours, _bare(archive, side, "torchvision") as torchvision:
        works = {"prepare": prepared, "ours": ours, "torchvision": torchvision}
        works["hash"] = lambda: _hash(archive.stat().st_size, count, side)
        works["write"] = lambda: _write(scratch / "written", count, side)
        took = by_turns(works, runs, least_s=0)
    limit = ("bare processes that decode", rates(count, took["ours"]))
    alone = zip(took["prepare"], took["hash"], took["write"], strict=True)
    rest = tuple(max(whole - hashing - writing, 0.0) for whole, hashing, writing in alone)
    return [
        Measured("prepare", PICTURES, rates(count, took["prepare"]), *limit),
        *_less(rates(count, rest) if all(rest) else (), limit),
        Measured("hashing in prepare", PICTURES, rates(count, took["hash"]), note="by itself, on all cores"),
        Measured("writing in prepare", PICTURES, rates(count, took["write"]), note="by itself, on all cores"),
        Measured("torchvision's decoder", PICTURES, rates(count, took["torchvision"]), *limit, note="at full size"),
    ]


def _less(values: tuple[float, ...], limit: tuple[str, tuple[float, ...]]) -> list[Measured]:
    """Nothing where hashing and writing by themselves took longer than all of it did."""
    note = "by subtraction: what of it runs beside the decoding is subtracted, too"
    return [Measured("prepare less hashing and writing", PICTURES, values, *limit, note=note)] if values else []


@contextmanager
def _bare(archive: Path, side: int, decoder: str) -> Iterator[Callable[[], None]]:
    """A function that decodes every image once on all cores, and waits for it."""
    cores = cpu.available_cpus()
    with ExitStack() as stack:
        group = []
        for first in range(cores):
            words = (str(archive.absolute()), str(side), str(first), str(cores), decoder)
            group.append(stack.enter_context(children.asked(children.module("bare_decode", *words))))
        for child in group:
            child.hear()

        def go() -> None:
            for child in group:
                child.say()
            for child in group:
                child.hear()

        yield go


def _hash(archive: int, count: int, side: int) -> None:
    """What prepare hashes: the archive, so many bytes, and each image in it and each row of pixels."""
    image, row = bytes(archive // count), bytes(side * side * 3)
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(image)

    def hash_one(_: int) -> None:
        hashlib.sha256(image).hexdigest()
        hashlib.sha256(row).hexdigest()

    _on_all_cores(hash_one, count)


def _write(path: Path, count: int, side: int) -> None:
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
