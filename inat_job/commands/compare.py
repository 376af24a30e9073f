"""`compare`: read the reports and predictions of finished runs, print how they compare, and write compare.html."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inat_job import events
from inat_job.command_options import CompareOptions
from inat_job.errors import BadDataError, UsageError
from inat_job.evaluation.prediction_table import NAME as PREDICTIONS
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.event_text import printable
from inat_job.options import public_uri
from inat_job.reporting import html
from inat_job.reporting.comparison import ComparedRun, compare, is_report
from inat_job.reporting.comparison_table import comparison_lines
from inat_job.run.run_state import CONFIG, REPORT, storage_options
from inat_job.run.sweep_folder import refuse_sweep
from inat_job.settings import Settings
from inat_job.signals import Stop
from inat_job.storage.base import Store
from inat_job.storage.disk import disk_errors, refuse_foreign, write_named
from inat_job.storage.interruptible import InterruptibleStore
from inat_job.storage.open_store import open_store, split_uri
from inat_job.storage.run_folder import read_stored_json, run_uri


def run(settings: Settings, names: Sequence[str], request: CompareOptions, stop: Stop) -> None:
    """Print the table, or one JSON object with --json, and write the page.

    Raises UsageError for fewer than two runs, BadDataError for a missing, unfinished, foreign or damaged one,
    ConflictError if the page would replace another file, and what the store raises.
    """
    if len(names) < 2:
        raise UsageError("RUNS is one run: name two or more.")
    page = Path(request.html)
    refuse_foreign(page, "--html", "comparison", lambda start: html.is_page("compare", start))
    located = [_located(settings, name, stop) for name in names]
    places = [(store.uri, key) for store, key in located]
    for name, place in zip(names, places, strict=True):
        if places.count(place) > 1:
            raise UsageError(f"RUNS names {public_uri(name)} twice: name each run once.")
    result = compare([_read(*each) for each in located])
    with disk_errors(page):
        write_named(page, html.render("compare", result).encode())
    if request.json or events.is_json():
        print(json.dumps(result), flush=True)
    else:
        lines = [*comparison_lines(result), "", f"The page is {page.resolve()}"]
        print("\n".join(printable(line) for line in lines), flush=True)


def _read(store: Store, key: str) -> ComparedRun:
    report = _report(store, key)
    return ComparedRun(store.uri, report, _predictions(store, report))


def _located(settings: Settings, name: str, stop: Stop) -> tuple[Store, str]:
    """The folder of a run and the name of its report in it: `name` is a run id, a folder, a report or a URI."""
    if name.lower().startswith(("http://", "https://")):
        raise UsageError(
            f"RUN is {public_uri(name)}: compare reads folders, s3://, gs:// and az:// only; download its report.json."
        )
    folder, key = split_uri(name) if name.endswith(".json") else (name, REPORT)
    folder = run_uri(folder, settings.run.output, REPORT)
    store = open_store(folder, storage_options(settings.storage), role="output")
    return InterruptibleStore(store, stop), key


def _report(store: Store, key: str) -> dict[str, Any]:
    report = read_stored_json(store, key)
    if not is_report(report):
        refuse_sweep(store, whole=True)
    if report is None:
        if key == REPORT and store.stat(CONFIG) is not None:
            raise BadDataError(f"{store.uri} is not finished, and has no {REPORT} yet: run its command again.")
        raise BadDataError(f"{store.uri} holds no {key}: check the run's name and --output.")
    if not is_report(report):
        raise BadDataError(f"{store.uri}/{key} is not the report of a finished run: name another.")
    return dict(report)


def _predictions(store: Store, report: dict[str, Any]) -> PredictionTable | None:
    """The run's predictions of its test images, or None if it has kept none, as older runs."""
    if store.stat(PREDICTIONS) is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / PREDICTIONS
        store.get(PREDICTIONS, path)
        table = PredictionTable.read_csv(path, f"{store.uri}/{PREDICTIONS}").split("test")
    test = report["test"]
    if (len(table), int((table.predicted == table.labels).sum())) != (test["n"], test["correct"]):
        raise BadDataError(f"{store.uri}/{PREDICTIONS} is not that of its {REPORT}: test the run again.")
    return table
