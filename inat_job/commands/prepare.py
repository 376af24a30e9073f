"""`prepare`: download, verify and build the decoded cache, and nothing else. `--prune` lists and deletes old caches."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inat_job import events, signals
from inat_job.command_options import PrepareOptions
from inat_job.ingest import cache
from inat_job.ingest.cache import CacheEntry, age_s
from inat_job.run.prepare_images import prepare_images
from inat_job.run.progress import format_duration
from inat_job.run.timing import Clock
from inat_job.settings import Settings
from inat_job.signals import Stop, StopFlag
from inat_job.telemetry import heartbeat

STATES = IN_USE, KEPT, DELETED, UNUSED = "in use", "kept", "deleted", "unused"


def run(settings: Settings, request: PrepareOptions, stop: StopFlag, started: float) -> None:
    """Leave a cache that the other commands find; or with --prune tell what lies there, and delete what is old."""
    if request.prune is not None:
        prune(Path(settings.data.cache_dir), request.unused_s, stop)
        return
    with heartbeat.emit_heartbeats():
        prepared = prepare_images(settings, Clock(started), stop)
    events.emit(
        "done",
        message=f"Prepared {len(prepared.index.ids)} images of {len(prepared.index.classes)} classes.",
        folder=str(prepared.folder),
        rejected=len(prepared.index.rejected),
    )


def prune(cache_dir: Path, unused_s: float | None, stop: Stop) -> None:
    """Tell all of it, and delete what nobody has used for `unused_s`, if that is given.

    What a job has in use stays, whatever its age, and so does what runs have yet to store. Raises ConflictError for a
    folder that cannot be read or written, Preempted.
    """
    if unused_s is not None:
        cache.remove_leftovers(cache_dir)
    told = []
    for each in cache.list_entries(cache_dir):
        signals.check(stop, "looking through --cache-dir")
        told.append((each, _dealt_with(each, unused_s)))
    _tell(told)
    freed, whole = (sum(each.bytes for each, became in told if became in which) for which in ([DELETED], STATES))
    gone = sum(became == DELETED for _, became in told)
    message = f"{cache_dir} holds {_size(whole)} in {len(told)} folders"
    if unused_s is None:
        message += "; none is deleted: to delete what is unused for 30 days, say --prune 30d."
    else:
        message += f", of which {gone} are deleted: that frees {_size(freed)}."
    events.emit("done", message=message, freed_bytes=freed)


def _dealt_with(each: CacheEntry, unused_s: float | None) -> str:
    if each.kind == "run":
        return KEPT
    if each.in_use:
        return IN_USE
    if unused_s is None or age_s(each.used_at) < unused_s:
        return UNUSED
    return DELETED if cache.prune(each) else IN_USE


def _tell(told: Sequence[tuple[CacheEntry, str]]) -> None:
    for each, became in told:
        said = _said(each, became)
        if sys.stdout.isatty():
            what = ", ".join(f"{name} {value}" for name, value in each.details.items())
            ages = f"unused {format_duration(said['unused_s']):>7}  made {format_duration(said['age_s']):>7} ago"
            print(f"{each.kind:<9} {_size(each.bytes):>9}  {ages}  {became:<8} {what}  {each.folder}")
        else:
            events.emit("cache", **said)


def _said(each: CacheEntry, became: str) -> dict[str, Any]:
    return {
        "kind": each.kind,
        "folder": str(each.folder),
        "bytes": each.bytes,
        "age_s": round(age_s(each.made_at)),
        "unused_s": round(age_s(each.used_at)),
        "state": became,
        **each.details,
    }


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
