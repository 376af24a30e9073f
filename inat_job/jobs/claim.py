"""Whether a run folder is new, unfinished, finished or somebody else's; all that is decided before any work."""

from enum import Enum
from typing import Any

from inat_job import events
from inat_job.errors import BadDataError, ConflictError, UsageError
from inat_job.settings import Settings
from inat_job.storage.run_folder import RunFolder

CONFIG, REPORT = "config.json", "report.json"


class Claim(Enum):
    """What a run folder is to this command."""

    NEW = "new"
    RESUME = "resume"
    FINISHED = "finished"


def config_of(settings: Settings, execution: dict[str, Any], command: str) -> dict[str, Any]:
    """What config.json holds."""
    return {
        "command": command,
        "part": settings.part,
        "run_id": settings.run_id,
        "fingerprint": settings.fingerprint(),
        "settings": settings.as_dict(),
        "execution": execution,
    }


def claim(folder: RunFolder, settings: Settings) -> tuple[Claim, dict[str, Any] | None]:
    """What to do with a run's folder, and the config.json that it holds.

    Raises ConflictError if it holds a run with other settings, or exists though `--resume never` is set; BadDataError
    if `--resume must` is set and there is nothing to resume.
    """
    run = settings.run
    if run.force and run.resume != "never":
        raise UsageError("--force goes with --resume never: it deletes the run and starts it anew.")
    stored = folder.read_json(CONFIG)
    if run.resume == "never" and stored is not None:
        if not run.force:
            raise ConflictError(
                f"{folder.uri} exists and --resume is never: add --force to delete it, or change --run-id."
            )
        events.emit("deleted", run=folder.uri)
        folder.clear()
        return Claim.NEW, None
    if stored is None:
        if run.resume == "must":
            raise BadDataError(f"{folder.uri} holds no run and --resume is must: check --output and --run-id.")
        return Claim.NEW, None
    _check_same(stored, settings, folder)
    report = folder.read_json(REPORT)
    done = report is not None and report.get("status") == "done"
    return (Claim.FINISHED if done else Claim.RESUME), stored


def _check_same(stored: dict[str, Any], settings: Settings, folder: RunFolder) -> None:
    if stored.get("fingerprint") == settings.fingerprint():
        return
    differing = ", ".join(_differences(stored, settings)[:5]) or "the part"
    raise ConflictError(
        f"{folder.uri} is a run with other settings ({differing}): change --run-id, or use --resume never --force."
    )


def _differences(stored: dict[str, Any], settings: Settings) -> list[str]:
    old = stored.get("settings", {})
    found = []
    for section, fields in settings.as_dict().items():
        for field, value in fields.items():
            before = old.get(section, {}).get(field)
            now = list(value) if isinstance(value, tuple) else value
            if before != now and section in ("model", "train", "data"):
                found.append(f"{section}.{field} {before} there, {now} here")
    return found
