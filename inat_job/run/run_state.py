"""The state of a run folder (new, unfinished, finished, another run's), and the lease of the job that works on it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

from inat_job import events
from inat_job.checkpoints.manifest import FOLDER, steps
from inat_job.configuration import options_by_key
from inat_job.errors import BadDataError, ConflictError, JobError, Preempted, UsageError
from inat_job.host import process
from inat_job.job_status import STATUS
from inat_job.recipes import RECIPES
from inat_job.settings import Settings
from inat_job.signals import Stop
from inat_job.storage.lease import Lease, acquire
from inat_job.storage.run_folder import RunFolder

CONFIG, REPORT = "config.json", "report.json"


class RunState(Enum):
    """What a run folder is to this command."""

    NEW = "new"
    RESUME = "resume"
    FINISHED = "finished"


def config_of(
    settings: Settings, execution: dict[str, Any], command: str, classes: Sequence[str] = ()
) -> dict[str, Any]:
    """What config.json holds; it is read in other folders too, and so local data are named from the root."""
    return {
        "command": command,
        "part": settings.part,
        "run_id": settings.run_id,
        "fingerprint": settings.fingerprint(),
        "settings": settings.anchored().as_dict(),
        "execution": execution,
        "classes": list(classes),
    }


def read_config(folder: RunFolder) -> dict[str, Any] | None:
    """The config.json of a run, or None where there is none. Raises BadDataError when it is damaged."""
    stored = folder.read_json(CONFIG)
    if stored is None:
        return None
    sections = stored.get("settings") if isinstance(stored, dict) else None
    if (
        not isinstance(sections, dict)
        or not all(isinstance(section, dict) for section in sections.values())
        or not isinstance(stored.get("execution"), dict)
        or stored.get("part") not in RECIPES
    ):
        raise BadDataError(f"{folder.uri}/{CONFIG} is not what a run writes: delete the run, or name another.")
    return dict(stored)


def check_run(folder: RunFolder, settings: Settings) -> tuple[RunState, dict[str, Any] | None]:
    """What to do with a run's folder, and the config.json that it holds.

    With `--force` it is new whatever it holds. Raises ConflictError if it holds a run with other settings, or exists
    though `--resume never` is set; BadDataError if `--resume must` is set and there is nothing to resume.
    """
    run = settings.run
    if run.force and run.resume != "never":
        raise UsageError("--force goes with --resume never: it deletes the run and starts it anew.")
    if run.force:
        return RunState.NEW, None
    stored = read_config(folder)
    if stored is None:
        check_empty(folder)
        if run.resume == "must":
            raise BadDataError(f"{folder.uri} holds no run and --resume is must: check --output and --run-id.")
        return RunState.NEW, None
    if run.resume == "never":
        raise ConflictError(f"{folder.uri} exists and --resume is never: add --force to delete it, or change --run-id.")
    _check_same(stored, settings, folder)
    if _has_report(folder):
        return RunState.FINISHED, stored
    if run.resume == "must" and not steps(_checkpoints(folder), "json"):
        raise BadDataError(f"{folder.uri} holds no checkpoint and --resume is must: resume it with --resume auto.")
    return RunState.RESUME, stored


def is_done(folder: RunFolder, settings: Settings) -> bool:
    """Whether the folder holds this very run, finished; for whoever may neither begin nor refuse it."""
    stored = read_config(folder)
    return stored is not None and stored.get("fingerprint") == settings.fingerprint() and _has_report(folder)


def _has_report(folder: RunFolder) -> bool:
    report = folder.read_json(REPORT)
    return isinstance(report, dict) and report.get("status") == "done"


def clear(folder: RunFolder, keep: str) -> None:
    """Delete the run in a folder, however damaged, but for the object `keep`; what was never a run is left alone."""
    if folder.store.stat(CONFIG) is not None or _checkpoints(folder):
        events.emit("deleted", run=folder.uri)
        folder.clear(keep)


def check_empty(folder: RunFolder) -> None:
    """Raise ConflictError for checkpoints of nobody knows whom."""
    if _checkpoints(folder):
        raise ConflictError(
            f"{folder.uri} holds checkpoints and no {CONFIG} that says whose they are: change --run-id, or delete them "
            "with --resume never --force."
        )


def _checkpoints(folder: RunFolder) -> list[str]:
    return [entry.key for entry in folder.store.list(f"{FOLDER}/")]


def _check_same(stored: dict[str, Any], settings: Settings, folder: RunFolder) -> None:
    if stored.get("command") == "test":
        raise ConflictError(f"{folder.uri} is the folder of a test: change --run-id, or use --resume never --force.")
    if stored.get("fingerprint") == settings.fingerprint():
        return
    same_part = stored["part"] == settings.part
    differing = ", ".join(_differences(stored, settings)[:5]) if same_part else "it is of the other part"
    raise ConflictError(
        f"{folder.uri} is a run with other settings ({differing or 'in a URI'}): change --run-id, or use "
        "--resume never --force."
    )


def _differences(stored: dict[str, Any], settings: Settings) -> list[str]:
    old, now = stored["settings"], json.loads(json.dumps(settings.anchored().as_dict()))  # tuples are lists there
    found = []
    for key, (each, _) in options_by_key(settings).items():
        section, _, field = key.partition(".")
        before, value = old.get(section, {}).get(field), now[section][field]
        if each.decides and before != value and (before, value) != (None, False):  # null was an unset switch
            found.append(f"{key} {before} there, {value} here")
    return found


_IN_THE_LEASE = ("phase", "step", "epoch", "epochs", "steps_per_epoch", "images_per_s")
"""Fields of the job's status that the lease's heartbeats carry, for `status`."""


@dataclass(frozen=True)
class HeldRun:
    """A run folder, and the lease on it."""

    folder: RunFolder
    lease: Lease


@contextmanager
def hold_run(folder: RunFolder, seconds: float, stop: Stop) -> Iterator[HeldRun]:
    """Be the run's only writer within the block. Raises LeaseError when another job is, for as long as this waits."""
    lease = acquire(folder.store, folder.background, seconds, process.identity(), process.gone, stop, _standing)
    try:
        yield HeldRun(folder, lease)
    except Preempted:
        lease.end("preempted")
        raise
    except BaseException as error:
        lease.end(f"failed with code {error.exit_code if isinstance(error, JobError) else 1}")
        raise
    lease.end()


def _standing() -> Mapping[str, object]:
    """Where the work stands, for who asks with `status`."""
    known = {name: getattr(STATUS, name) for name in _IN_THE_LEASE}
    return {name: value for name, value in known.items() if value is not None}
