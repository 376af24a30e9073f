"""What lies in the cache folder: prepared images, downloads, features and weights, who has them in use, since when
they are not, and how they go.
"""

import json
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

KEPT = "spool"
"""What runs have not stored yet may lie here: their next attempt stores it, and nobody else deletes it."""

_ROOMS = {"prepared": "images", "downloads": "download", "features": "features", "weights": "weights", KEPT: "run"}


@dataclass(frozen=True)
class Cached:
    """A folder of the cache. `said` tells people what it is, as far as it tells itself; `locks` are held by who writes
    into it; `used_at` is the time.time() of its last use."""

    kind: str
    folder: Path
    bytes: int
    made_at: float
    used_at: float
    said: dict[str, Any] = field(default_factory=dict)
    locks: tuple[Path, ...] = ()

    @property
    def in_use(self) -> bool:
        """Whether a job has it in use now."""
        return not cache_locks.is_free(self.folder, self.locks)


def found(cache_dir: Path) -> list[Cached]:
    """What there is, longest unused first. Raises ConflictError for a folder that cannot be read."""
    with cache_errors(cache_dir):
        return sorted(_found(cache_dir), key=lambda each: each.used_at)


def prune(each: Cached) -> bool:
    """Delete a folder, unless somebody has it in use or it is none to delete; whether it is gone.

    Raises ConflictError.
    """
    if each.kind == _ROOMS[KEPT]:
        return False
    with cache_errors(each.folder):
        try:
            away = cache_locks.delete(each.folder, each.locks)
        except FileNotFoundError:  # another deleted it meanwhile
            return True
        if away:
            shutil.rmtree(away)
    return away is not None


def sweep(cache_dir: Path) -> None:
    """Delete what an earlier job took away and could not delete in time."""
    with cache_errors(cache_dir):
        for room in _ROOMS:
            for left in (cache_dir / room).glob(f"{cache_locks.GONE}*"):
                shutil.rmtree(left, ignore_errors=True)


def _found(cache_dir: Path) -> Iterator[Cached]:
    for room, kind in _ROOMS.items():
        for folder in sorted((cache_dir / room).glob("*/*" if room == KEPT else "*")):
            if folder.is_dir() and not folder.is_symlink() and not folder.name.startswith(cache_locks.GONE):
                with suppress(FileNotFoundError):  # another deleted it meanwhile
                    yield _cached(kind, folder)


def _cached(kind: str, folder: Path) -> Cached:
    stats = [folder.lstat(), *_stats(folder)]
    times = [stat.st_mtime for stat in stats if not S_ISDIR(stat.st_mode)]
    return Cached(
        kind,
        folder,
        bytes=sum(512 * stat.st_blocks for stat in stats),
        made_at=min(times, default=stats[0].st_mtime),
        used_at=max(stat.st_mtime for stat in stats),
        said=_said(kind, folder),
        locks=(folder.with_suffix(".lock"), *sorted(folder.glob("*.lock"))),
    )


def _stats(folder: Path) -> Iterator[os.stat_result]:
    """Of all in the folder that doesn't go away meanwhile, since a job may be at work there."""
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            yield path.lstat()


def _said(kind: str, folder: Path) -> dict[str, Any]:
    if kind == "run":
        return {"name": folder.name}
    if kind != "images":
        names = sorted(path.name for path in folder.iterdir() if path.suffix not in (".lock", ".json", ".tmp"))
        return {"name": names[0], "files": len(names)} if names else {}
    if folder.suffix == ".tmp":
        return {"unfinished": True}
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))["index"]
        return {"source": str(index["source"]), "side": int(index["side"]), "images": len(index["ids"])}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return {"damaged": True}


def age_s(at: float) -> float:
    """Seconds since a time.time(), none of them negative."""
    return max(0.0, time.time() - at)
