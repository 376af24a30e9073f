"""The contents of the cache folder: prepared images, downloads, features and weights; which of them jobs use, when each
was used last, and how they are deleted.
"""

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR
from typing import Any

from inat_job.data.cache_index import INDEX
from inat_job.storage import cache_locks
from inat_job.storage.cache_locks import cache_errors
from inat_job.storage.disk import read_json_object

SPOOL = "spool"
"""The folder of files that runs have not stored yet: only a run's next attempt stores and deletes them."""

_KINDS = {"prepared": "images", "downloads": "download", "features": "features", "weights": "weights", SPOOL: "run"}


@dataclass(frozen=True)
class CacheEntry:
    """A folder of the cache.

    `details` describes its contents to people, as far as they are known; `locks` are the lock files of jobs that write
    into it; `made_at` and `used_at` are in the seconds of time.time().
    """

    kind: str
    folder: Path
    bytes: int
    made_at: float
    used_at: float
    details: dict[str, Any] = field(default_factory=dict)
    locks: tuple[Path, ...] = ()

    @property
    def in_use(self) -> bool:
        """Whether a job uses it now."""
        return not cache_locks.is_free(self.folder, self.locks)


def list_entries(cache_dir: Path) -> list[CacheEntry]:
    """All folders of the cache, least recently used first. Raises ConflictError for a folder that cannot be read."""
    with cache_errors(cache_dir):
        return sorted(_entries(cache_dir), key=lambda entry: entry.used_at)


def prune(entry: CacheEntry) -> bool:
    """Delete a folder unless a job uses it or it is a run's; returns whether it is gone. Raises ConflictError."""
    if entry.kind == _KINDS[SPOOL]:
        return False
    with cache_errors(entry.folder):
        try:
            renamed = cache_locks.delete(entry.folder, entry.locks)
        except FileNotFoundError:  # another job has deleted it
            return True
        if renamed:
            shutil.rmtree(renamed)
    return renamed is not None


def remove_leftovers(cache_dir: Path) -> None:
    """Finish the deletions of an earlier job that was interrupted. Raises ConflictError."""
    with cache_errors(cache_dir):
        for name in _KINDS:
            for left in (cache_dir / name).glob(f"{cache_locks.DELETED_PREFIX}*"):
                shutil.rmtree(left, ignore_errors=True)


def _entries(cache_dir: Path) -> Iterator[CacheEntry]:
    for name, kind in _KINDS.items():
        for folder in sorted((cache_dir / name).glob("*/*" if name == SPOOL else "*")):
            if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith(cache_locks.DELETED_PREFIX):
                with suppress(FileNotFoundError):  # another job has deleted it
                    yield _entry(kind, folder)


def _entry(kind: str, folder: Path) -> CacheEntry:
    stats = [folder.lstat(), *_stats(folder)]
    times = [stat.st_mtime for stat in stats if not S_ISDIR(stat.st_mode)]
    return CacheEntry(
        kind,
        folder,
        bytes=sum(512 * stat.st_blocks for stat in stats),
        made_at=min(times, default=stats[0].st_mtime),
        used_at=max(stat.st_mtime for stat in stats),
        details=_details(kind, folder),
        locks=(folder.with_suffix(".lock"), *sorted(folder.glob("*.lock"))),
    )


def _stats(folder: Path) -> Iterator[os.stat_result]:
    """Of everything in the folder except files that a working job deletes meanwhile."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            yield path.lstat()


def _details(kind: str, folder: Path) -> dict[str, Any]:
    if kind == "run":
        return {"name": folder.name}
    if kind != "images":
        names = sorted(path.name for path in folder.iterdir() if path.suffix not in (".lock", ".json", ".tmp"))
        return {"name": names[0], "files": len(names)} if names else {}
    if folder.suffix == ".tmp":
        return {"unfinished": True}
    try:
        index = read_json_object(folder / INDEX)["index"]
        return {"source": str(index["source"]), "side": int(index["side"]), "images": len(index["ids"])}
    except (ValueError, LookupError, TypeError):
        return {"damaged": True}


def age_s(at: float) -> float:
    """Seconds since `at`, a time.time(); never negative."""
    return max(0.0, time.time() - at)
