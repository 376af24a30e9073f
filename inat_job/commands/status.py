"""`status`: the state of a run, read from its folder only: nothing is written, and torch is not imported."""

import json
import math
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from inat_job import events, signals
from inat_job.command_options import StatusOptions
from inat_job.errors import EndedError, UsageError
from inat_job.event_text import printable
from inat_job.host import process
from inat_job.run import progress
from inat_job.run.progress import FINISHED
from inat_job.run.run_listing import list_runs, look, table
from inat_job.run.run_state import CONFIG, open_run
from inat_job.settings import Settings
from inat_job.signals import Stop
from inat_job.storage.attempts import RUNNING
from inat_job.storage.run_folder import RunFolder, run_uri

EVERY_S = {False: 2.0, True: 15.0}
"""Seconds between two looks at a local folder, and at a remote one."""


def run(settings: Settings, name: str | None, request: StatusOptions, stop: Stop) -> None:
    """Print the state of the run: lines for a person, one JSON object a look for a machine. Without a `name`, print a
    table of the runs under `--output`, or an object for each.

    With --watch, look again until no job works on it, and then raise EndedError if the run is not finished. Raises
    BadDataError if there is no run, Preempted, and what the store raises.
    """
    if name is None:
        _print_all(settings, request, stop)
        return
    folder = open_run(settings, run_uri(name, settings.run.output, CONFIG), stop)
    printed: list[str] = []
    for seen in _looks(folder, stop):
        printed = _print(seen, printed)
        if not request.watch:
            return
        if seen["state"] != RUNNING:
            break
        signals.pause(EVERY_S[folder.remote], stop, "watching a run")
    if seen["state"] != FINISHED:
        raise EndedError(
            f"{folder.uri} is not finished, and its last attempt has ended ({seen['state']}): run the same command "
            "again, or see its log.",
            progress.exit_code_of(seen["state"]),
        )


def _print_all(settings: Settings, request: StatusOptions, stop: Stop) -> None:
    """Raises UsageError with --watch."""
    if request.watch:
        raise UsageError("--watch is given without a run: name the one to watch.")
    runs = sorted(list_runs(settings, stop), key=lambda run: run.seen_at)
    if events.is_json():
        print("".join(f"{json.dumps(dict(run.fields))}\n" for run in runs), end="", flush=True)
    elif runs:
        print("\n".join(map(printable, table(runs))), flush=True)
    else:
        print(printable(f"{settings.run.output} holds no runs."), flush=True)


def _looks(folder: RunFolder, stop: Stop) -> Iterator[dict[str, Any]]:
    """The result of each look. The job's silence is measured by its own clock until it was seen to write."""
    version, heard_at = "", None
    while True:
        seen, now = look(folder, stop)
        if version and now != version:
            heard_at = time.monotonic()
        version = now
        if heard_at is not None:
            seen = replace(seen, heard_s=time.monotonic() - heard_at)
        yield progress.status_fields(seen, progress.state_of(seen, process.has_ended))


def _print(seen: dict[str, Any], before: list[str]) -> list[str]:
    """Print the result of a look, for a person only if it is new; returns the lines for a person.

    On a terminal they replace those of the look before.
    """
    if events.is_json():
        print(json.dumps(seen), flush=True)
        return []
    lines = [printable(line) for line in progress.status_lines(seen)]
    if lines != before:
        print((_up(before) if sys.stdout.isatty() else "") + "\n".join(lines), flush=True)
    return lines


def _up(lines: Sequence[str]) -> str:
    """What moves a terminal's cursor to the first of the last lines, and clears the screen from there."""
    columns = shutil.get_terminal_size().columns
    rows = sum(max(1, math.ceil(len(line) / columns)) for line in lines)
    return f"\033[{rows}F\033[J" if rows else ""
