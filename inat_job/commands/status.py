"""`status`: where a run stands, by a look at its folder alone: nothing is written, and torch is not imported."""

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from inat_job import signals
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.command_options import StatusOptions
from inat_job.errors import BadDataError, JobError
from inat_job.host import process
from inat_job.run import progress
from inat_job.run.progress import FINISHED, RunSnapshot
from inat_job.run.run_state import REPORT, open_run, read_config
from inat_job.settings import Settings
from inat_job.signals import Stop
from inat_job.storage import attempts
from inat_job.storage.attempts import RUNNING
from inat_job.storage.run_folder import RunFolder

EVERY_S = {False: 2.0, True: 15.0}
"""Seconds between two looks at a folder here, and one far away."""


class UnfinishedError(JobError):
    """Nobody works on the run that was watched; its exit code is that of its last attempt."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run(settings: Settings, name: str, request: StatusOptions, stop: Stop) -> None:
    """Tell where the run stands; a person gets lines, a machine one JSON object a look.

    With --watch, until nobody works on it any more. Raises then UnfinishedError for a run that isn't finished;
    BadDataError where there is no run, Preempted, and what the store raises.
    """
    folder = open_run(settings, name, stop)
    shown: list[str] = []
    for said in _looks(folder, stop):
        shown = _show(said, shown)
        if not request.watch:
            return
        if said["state"] != RUNNING:
            break
        _wait(EVERY_S[folder.remote], stop)
    if said["state"] != FINISHED:
        raise UnfinishedError(
            f"{folder.uri} is not finished, and its last attempt is over ({said['state']}): run the same command "
            "again, or look into its log.",
            progress.exit_code_of(said["state"]),
        )


def _looks(folder: RunFolder, stop: Stop) -> Iterator[dict[str, Any]]:
    """What each look tells. A holder that was seen to write is heard of by our clock, and before that by its own."""
    version, heard_at = "", None
    while True:
        seen, now = _look(folder, stop)
        if version and now != version:
            heard_at = time.monotonic()
        version = now
        if heard_at is not None:
            seen = replace(seen, heard_s=time.monotonic() - heard_at)
        yield progress.status_fields(seen, progress.state_of(seen, process.has_ended))


def _look(folder: RunFolder, stop: Stop) -> tuple[RunSnapshot, str]:
    """What is there now, and the version of the last attempt's object."""
    config, (attempt, version) = read_config(folder), attempts.latest_attempt(folder.store, 1.0)
    stored = CheckpointIndex(folder, stop).discover().stored
    if config is None and attempt is None and not stored:
        raise BadDataError(f"{folder.uri} holds no run: check its name and --output.")
    report = folder.read_json(REPORT)
    done = report if isinstance(report, dict) and report.get("status") == "done" else None
    heard_s = max(0.0, time.time() - attempt.at) if attempt else 0.0
    return RunSnapshot(folder.uri, config or {}, done, attempt, heard_s, stored), version


def _show(said: dict[str, Any], before: list[str]) -> list[str]:
    """Print it, to a person only what is new; returns that person's lines."""
    if not sys.stdout.isatty():
        print(json.dumps(said), flush=True)
        return []
    lines = progress.status_lines(said)
    if lines != before:
        print("\n".join(lines), flush=True)
    return lines


def _wait(seconds: float, stop: Stop) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        signals.check(stop, "watching a run")
        time.sleep(min(left, 0.1))
