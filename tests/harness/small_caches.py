"""Caches for tests: prepared from a data set, or of a few training images without an archive that they come from."""

from collections.abc import Sequence
from pathlib import Path

from inat_job.data.cache_index import PIXELS, Cache, CacheIndex
from inat_job.ingest import build_cache, data_source
from inat_job.signals import never
from inat_job.storage import StorageOptions


def prepared(uri: object, cache_dir: Path, size: int = 32, max_broken: float = 0.01) -> Cache:
    """The cache of a data set; a failed request is not tried again."""
    source = data_source.find(str(uri), cache_dir, StorageOptions(retries=0), never)
    return build_cache.prepare(source, cache_dir, size, max_broken, never)


def small_cache(folder: Path, pixels: bytes, side: int, sizes: Sequence[tuple[int, int]]) -> Cache:
    """A cache in an existing folder, of as many images as there are `sizes`; their classes alternate."""
    (folder / PIXELS).write_bytes(pixels)
    rows = range(len(sizes))
    index = CacheIndex(
        source="x",
        digest="0" * 64,
        side=side,
        classes=("A", "B"),
        ids=tuple(f"train/A/{row:02d}" for row in rows),
        labels=tuple(row % 2 for row in rows),
        splits=("train",) * len(sizes),
        sizes=tuple(sizes),
        hashes=tuple(str(row) for row in rows),
        rejected=(),
        pixels_sha256="",
    )
    return Cache(folder, index)
