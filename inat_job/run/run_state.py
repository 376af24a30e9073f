"""Run folders: how a command opens one, what state it is in (new, unfinished, finished, another run's), and its lease.

A run has one writer at a time, the holder of the lease.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from inat_job import events
from inat_job.checkpoints.manifest import FOLDER, steps_in
from inat_job.configuration import options_by_key
from inat_job.errors import BadDataError, ConflictError, JobError, Preempted, UsageError
from inat_job.host import environment, process
from inat_job.job_settings import StorageSettings
from inat_job.job_status import STATUS
from inat_job.recipes import RECIPES
from inat_job.run.sweep_folder import refuse_to_write_in_sweep
from inat_job.settings import Settings
from inat_job.signals import Stop, never
from inat_job.storage import StorageOptions
from inat_job.storage.fenced import lost_lease_first
from inat_job.storage.lease import Lease, acquire
from inat_job.storage.run_folder import RunFolder, open_folder, run_uri

CONFIG, REPORT = "config.json", "report.json"
_PLAN = {"views": int, "epochs": int, "at": str}
"""The fields of a stored plan of which features to cache."""


class RunState(Enum):
    """What a run folder is to this command."""

    NEW = "new"
    RESUME = "resume"
    FINISHED = "finished"


def storage_options(settings: StorageSettings) -> StorageOptions:
    """The storage settings in the form that stores take."""
    environment.set_region()
    return StorageOptions(
        sse_kms_key_id=settings.sse_kms_key_id, requester_pays=settings.requester_pays, anonymous=settings.anonymous
    )


def open_run(settings: Settings, name: str, stop: Stop = never, options: StorageOptions | None = None) -> RunFolder:
    """The folder of the run `name`: a run id under `--output`, or a URI. Its requests end at `stop`.

    `options` are those of the settings by default.
    """
    spools = Path(settings.data.cache_dir) / "spool"
    options = options or storage_options(settings.storage)
    return open_folder(run_uri(name, settings.run.output), options, spools, stop)


def run_config(
    settings: Settings, execution: dict[str, Any], command: str, classes: Sequence[str] = ()
) -> dict[str, Any]:
    """The contents of config.json. It is read from other working directories too, so local paths are absolute."""
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
    """The config.json of a run, or None if there is none. Raises BadDataError when it is damaged."""
    stored = folder.read_json(CONFIG)
    if stored is None:
        return None
    if not _is_config(stored):
        raise BadDataError(f"{folder.uri}/{CONFIG} is not the config.json of a run: delete the run, or name another.")
    return dict(stored)


def _is_config(stored: Any) -> bool:
    """Whether each value has the type that `run_config` and `decide_once` give it."""
    if not isinstance(stored, dict) or not isinstance(stored.get("part"), str) or stored["part"] not in RECIPES:
        return False
    sections, plan = stored.get("settings"), stored.get("reuse")
    names = [stored.get("classes", []), stored.get("lacking", [])]
    return (
        isinstance(sections, dict)
        and all(isinstance(section, dict) for section in sections.values())
        and isinstance(stored.get("execution"), dict)
        and isinstance(stored.get("started", ""), str)
        and isinstance(stored.get("epochs", 1), int)
        and all(isinstance(each, list) and all(isinstance(name, str) for name in each) for each in names)
        and (plan is None or (isinstance(plan, dict) and {name: type(plan[name]) for name in plan} == _PLAN))
    )


def decide_run_state(folder: RunFolder, settings: Settings) -> tuple[RunState, dict[str, Any] | None]:
    """What to do with a run's folder, and the config.json in it.

    With `--force` it is new, whatever run is in it. Raises ConflictError if it holds a run with other settings or a
    sweep, or exists although `--resume never` is set; BadDataError if `--resume must` is set and there is nothing to
    resume.
    """
    run = settings.run
    if run.force and run.resume != "never":
        raise UsageError("--force needs --resume never: it deletes the run and starts it again.")
    stored = None if run.force else read_config(folder)
    if stored is None:
        refuse_to_write_in_sweep(folder.store)
    if run.force:
        return RunState.NEW, None
    if stored is None:
        refuse_unowned_checkpoints(folder)
        if run.resume == "must":
            raise BadDataError(f"{folder.uri} holds no run and --resume is must: check --output and --run-id.")
        return RunState.NEW, None
    if run.resume == "never":
        raise ConflictError(f"{folder.uri} exists and --resume is never: add --force to delete it, or change --run-id.")
    _check_same_run(stored, settings, folder)
    if _has_report(folder):
        return RunState.FINISHED, stored
    if run.resume == "must" and not steps_in(_checkpoint_keys(folder), "json"):
        raise BadDataError(f"{folder.uri} holds no checkpoint and --resume is must: resume it with --resume auto.")
    return RunState.RESUME, stored


def is_finished(folder: RunFolder, settings: Settings) -> bool:
    """Whether the folder holds this run, finished; for ranks that may neither begin nor refuse it."""
    stored = read_config(folder)
    return stored is not None and stored.get("fingerprint") == settings.fingerprint() and _has_report(folder)


def delete_run(folder: RunFolder, keep: str) -> None:
    """Delete the run in a folder, however damaged, except the object `keep`. A folder that is no run is left alone."""
    if folder.store.stat(CONFIG) is not None or _checkpoint_keys(folder):
        events.emit("deleted", run=folder.uri)
        folder.clear(keep, emptied=REPORT)


def refuse_unowned_checkpoints(folder: RunFolder) -> None:
    """Raise ConflictError for checkpoints without a config.json, which may be of any run."""
    if _checkpoint_keys(folder):
        raise ConflictError(
            f"{folder.uri} holds checkpoints but no {CONFIG}, so their run is unknown: change --run-id, or delete them "
            "with --resume never --force."
        )


@dataclass(frozen=True)
class LeasedRun:
    """A run folder, the lease on it, and the run's config.json once that is known."""

    folder: RunFolder
    lease: Lease
    config: dict[str, Any] = field(default_factory=dict)


@contextmanager
def lease_run(folder: RunFolder, seconds: float, stop: Stop) -> Iterator[LeasedRun]:
    """Be the run's only writer within the block. Raises LeaseError if another job holds the run."""
    lease = acquire(
        folder.store, folder.background, seconds, process.identity(), process.has_ended, stop, _lease_fields
    )
    try:
        folder.fence(lease.number, lease.check)
        with lost_lease_first(lease.check_briefly):
            yield LeasedRun(folder, lease)
    except Preempted:
        lease.end("preempted")
        raise
    except BaseException as error:
        lease.end(f"failed with code {error.exit_code if isinstance(error, JobError) else 1}")
        raise
    lease.end()


_LEASE_FIELDS = ("phase", "step", "epoch", "epochs", "steps_per_epoch", "images_per_s")
"""Fields of the job's status that the lease's heartbeats carry, for `status`."""


def _lease_fields() -> Mapping[str, object]:
    known = {name: getattr(STATUS, name) for name in _LEASE_FIELDS}
    return {name: value for name, value in known.items() if value is not None}


def _has_report(folder: RunFolder) -> bool:
    report = folder.read_json(REPORT)
    return isinstance(report, dict) and report.get("status") == "done"


def _checkpoint_keys(folder: RunFolder) -> list[str]:
    return [entry.key for entry in folder.store.list(f"{FOLDER}/")]


def _check_same_run(stored: dict[str, Any], settings: Settings, folder: RunFolder) -> None:
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
    old, new = stored["settings"], json.loads(json.dumps(settings.anchored().as_dict()))  # JSON has no tuples
    found = []
    for key, (option, _) in options_by_key(settings).items():
        section, _, field = key.partition(".")
        before, value = old.get(section, {}).get(field), new[section][field]
        if before is None and option.off:
            before = option.off[0]  # the run's version did not have it
        if before is None and value is False:
            continue  # a switch that was not set
        if option.in_fingerprint and before != value:
            found.append(f"{key} is {before} in the run, {value} here")
    return found
