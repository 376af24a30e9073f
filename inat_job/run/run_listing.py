"""The runs under `--output`: what a look at a run's folder finds, the table of all runs, and how an unfinished one is
deleted. Needs no torch.
"""

import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from inat_job import signals
from inat_job.address import child
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.errors import BadDataError
from inat_job.host import process
from inat_job.run import progress
from inat_job.run.progress import FINISHED, RunSnapshot, format_duration
from inat_job.run.run_state import CONFIG, REPORT, open_run, read_config, storage_options
from inat_job.run.sweep_folder import SWEEP, refuse_sweep
from inat_job.settings import Settings
from inat_job.signals import Stop
from inat_job.storage import attempts, open_store
from inat_job.storage.attempts import RUNNING, Attempt
from inat_job.storage.disk import shown_number
from inat_job.storage.lease import LeaseError, acquire
from inat_job.storage.run_folder import RunFolder, read_stored_json
from inat_job.storage.threads import map_in_threads

DAMAGED = "damaged"
OF_SWEEP = "sweep"
"""The state of a sweep, whose runs have states of their own."""
_THREADS = 8
"""Runs that are looked at side by side: each look is some ten requests."""

_OF_A_RUN = re.compile(rf"([^/]+)/({re.escape(CONFIG)}|{attempts.FOLDER}/\d+\.json)")


@dataclass(frozen=True)
class ListedRun:
    """A run or a sweep under `--output`: the fields of `status`, its last attempt, and its last sign of life in seconds
    since 1970, 0 if unknown.
    """

    folder: RunFolder
    fields: Mapping[str, Any]
    attempt: Attempt | None = None
    seen_at: float = 0.0

    @property
    def state(self) -> str:
        """As in `status`, or DAMAGED, or OF_SWEEP."""
        return str(self.fields["state"])


def look(folder: RunFolder, stop: Stop) -> tuple[RunSnapshot, str]:
    """A run's folder as it is now, and the version of the last attempt's object. Raises BadDataError if it holds no
    run, or a damaged one.
    """
    config = read_config(folder)
    if config is None:
        refuse_sweep(folder.store)
    attempt, version = attempts.latest_attempt(folder.store, 1.0)
    stored = CheckpointIndex(folder, stop).discover().stored
    if config is None and attempt is None and not stored:
        raise BadDataError(f"{folder.uri} holds no run: check its name and --output.")
    report = folder.read_json(REPORT)
    done = report if isinstance(report, dict) and report.get("status") == "done" else None
    heard_s = max(0.0, time.time() - attempt.at) if attempt else 0.0
    return RunSnapshot(folder.uri, config or {}, done, attempt, heard_s, stored), version


def list_runs(settings: Settings, stop: Stop) -> list[ListedRun]:
    """The runs and sweeps under `--output`, in the order of their names; the runs of sweeps are not among them.

    Raises Preempted and what the store raises.
    """
    output = settings.run.output
    store = open_store(output, storage_options(settings.storage), role="output")
    keys = [entry.key for entry in store.list()]
    holders = {key.removesuffix(f"/{SWEEP}") for key in keys if key.endswith(f"/{SWEEP}")}
    sweeps = {name for name in holders if "/" not in name}
    runs = {match[1] for match in map(_OF_A_RUN.fullmatch, keys) if match}
    runs -= {name.partition("/")[0] for name in holders}
    folders = [open_run(settings, child(output, name), stop) for name in sorted(runs | sweeps)]
    listed = map_in_threads(
        folders,
        lambda folder, _: _listed_sweep(folder) if folder.run_id in sweeps else _listed(folder, stop),
        threads=_THREADS,
        tick=lambda: signals.check(stop, "listing the runs"),
    )
    return sorted((run for _, run in listed), key=lambda run: run.folder.run_id)


def _listed(folder: RunFolder, stop: Stop) -> ListedRun:
    try:
        seen, _ = look(folder, stop)
    except BadDataError:
        return ListedRun(folder, {"run_id": folder.run_id, "run": folder.uri, "state": DAMAGED})
    started, cost = seen.config.get("started"), (seen.report or {}).get("cost")
    fields = progress.status_fields(seen, progress.state_of(seen, process.has_ended)) | {
        "started": started if isinstance(started, str) else None,
        "cost": {name: shown_number(each) for name, each in cost.items()} if isinstance(cost, Mapping) else None,
    }
    at = seen.attempt.at if seen.attempt else 0.0
    return ListedRun(folder, fields, seen.attempt, at or _seconds(fields["started"]))


def _listed_sweep(folder: RunFolder) -> ListedRun:
    """A sweep, with the accuracies of its report once there is one."""
    fields = {"run_id": folder.run_id, "run": folder.uri}
    try:
        sweep: Any = read_stored_json(folder.store, SWEEP)
        part, report = sweep["part"], read_stored_json(folder.store, REPORT)
        best = {"val_accuracy": report["best"]["val_accuracy"]} if report else None
        test = report["test"]["mean"] if report and report["test"] else None
    except (BadDataError, TypeError, LookupError):
        return ListedRun(folder, fields | {"state": DAMAGED})
    return ListedRun(folder, fields | {"state": OF_SWEEP, "part": part, "best": best, "test_accuracy": test})


def _seconds(date: str | None) -> float:
    try:
        return datetime.fromisoformat(date or "").timestamp()
    except ValueError:
        return 0.0


def delete_unfinished(run: ListedRun, lease_s: float, stop: Stop) -> bool:
    """Delete a run that no job has worked on for long; returns whether it is gone.

    A job that resumes it at this moment keeps it, or waits and then finds nothing to resume: the run is taken over
    first, from the attempt that was listed alone. Raises Preempted and what the store raises.
    """
    folder, store = run.folder, run.folder.store
    latest, _ = attempts.latest_attempt(store, lease_s)
    if latest != run.attempt or (not folder.remote and folder.local.is_symlink()):
        return False
    try:
        lease = acquire(store, folder.background, lease_s, process.identity(), process.has_ended, stop)
    except LeaseError:
        return False
    try:
        folder.fence(lease.number, lease.check)
        folder.clear(lease.key, emptied=REPORT)
        left = [entry.key for entry in store.list()]  # what a job writes that takes over from here on stays
    finally:
        lease.end("deleted")
    for key in left:
        store.delete(key)
    if not folder.remote:
        _remove_empty(folder.local)
    return True


def _remove_empty(folder: Path) -> None:
    for parent, _, _ in os.walk(folder, topdown=False):
        with suppress(OSError):  # it holds something
            Path(parent).rmdir()


_COLUMNS = ("run", "part", "started", "epoch", "validation", "test", "state", "cost")


def table(runs: Sequence[ListedRun]) -> list[str]:
    """The lines of the table for people, the names of the columns first."""
    rows = [_COLUMNS, *(_row(run.fields) for run in runs)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(_COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(fields: Mapping[str, Any]) -> tuple[str, ...]:
    best, epochs = fields.get("best"), fields.get("epochs")
    return (
        fields["run_id"],
        (fields.get("part") or "").upper(),
        (fields.get("started") or "")[:16].replace("T", " "),
        f"{fields['epoch']}/{epochs}" if epochs else "",
        _share(best and best["val_accuracy"]),
        _share(fields.get("test_accuracy")),
        fields["state"],
        _cost(fields.get("cost")),
    )


def _share(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def _cost(cost: Mapping[str, Any] | None) -> str:
    """In the currency of --price-per-hour, or else the devices' time."""
    total, used = (cost or {}).get("total"), (cost or {}).get("device_seconds")
    if total is not None:
        return f"{total:.2f}"
    return "" if used is None else format_duration(used)


def is_old(run: ListedRun, age_s: float) -> bool:
    """Whether an unfinished run has shown no sign of life for so long."""
    idle = run.state not in (FINISHED, RUNNING, DAMAGED, OF_SWEEP)
    return idle and 0 < run.seen_at <= time.time() - age_s
