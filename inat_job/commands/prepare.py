"""`prepare`: download, verify and decode a data set, and nothing else. `--prune` lists and deletes old caches."""

from pathlib import Path

from inat_job import events, signals
from inat_job.command_options import PrepareOptions
from inat_job.event_text import counted, printable
from inat_job.ingest import cache
from inat_job.ingest.cache import CacheEntry, age_s
from inat_job.run.prepare_images import prepare_images
from inat_job.run.progress import format_duration
from inat_job.run.timing import Clock
from inat_job.settings import Settings
from inat_job.signals import Stop, StopFlag
from inat_job.telemetry import heartbeat

IN_USE, KEPT, DELETED, UNUSED = "in use", "kept", "deleted", "unused"


def run(settings: Settings, request: PrepareOptions, stop: StopFlag, started: float) -> None:
    """Build a cache for the other commands; or with --prune list what is there, and delete what is old."""
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
    """List everything, and delete what has not been used for `unused_s`, if that is given.

    What a job uses is kept, whatever its age, and so is what runs have yet to store. Raises ConflictError for a folder
    that cannot be read or written, Preempted.
    """
    if unused_s is not None:
        cache.remove_leftovers(cache_dir)
    states = []
    for each in cache.list_entries(cache_dir):
        signals.check(stop, "looking through --cache-dir")
        states.append((each, _prune_one(each, unused_s)))
    for each, state in states:
        _list(each, state)
    size, freed = sum(each.bytes for each, _ in states), sum(each.bytes for each, state in states if state == DELETED)
    message = f"{cache_dir} holds {_size(size)} in {counted(len(states), 'folder', 'folders')}"
    if unused_s is None:
        message += "; nothing is deleted: to delete what is unused for 30 days, use --prune 30d."
    else:
        deleted = sum(state == DELETED for _, state in states)
        message += f", of which {counted(deleted, 'is deleted', 'are deleted')}: that frees {_size(freed)}."
    events.emit("done", message=message, freed_bytes=freed)


def _prune_one(each: CacheEntry, unused_s: float | None) -> str:
    """Delete a folder if it is old, and return its state."""
    if each.kind == "run":
        return KEPT
    if each.in_use:
        return IN_USE
    if unused_s is None or age_s(each.used_at) < unused_s:
        return UNUSED
    return DELETED if cache.prune(each) else IN_USE


def _list(each: CacheEntry, state: str) -> None:
    """A line on stdout for a person, or an event for a machine."""
    age, unused = round(age_s(each.made_at)), round(age_s(each.used_at))
    if events.is_json():
        facts = {"kind": each.kind, "folder": str(each.folder), "bytes": each.bytes, "age_s": age, "unused_s": unused}
        events.emit("cache", **facts, state=state, **each.details)
        return
    what = ", ".join(f"{name} {value}" for name, value in each.details.items())
    ages = f"unused {format_duration(unused):>7}  made {format_duration(age):>7} ago"
    print(printable(f"{each.kind:<9} {_size(each.bytes):>9}  {ages}  {state:<8} {what}  {each.folder}"))


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
