"""The end of a run: the report and its companions written here, then stored, then told to the tracker."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inat_job import events
from inat_job.errors import TransientError
from inat_job.evaluation import plots
from inat_job.jobs.claim import REPORT
from inat_job.reporting import html, report
from inat_job.reporting.tracking import Tracker
from inat_job.storage.run_folder import RunFolder
from inat_job.training.checkpoints import FOLDER as CHECKPOINTS
from inat_job.training.checkpoints import Checkpoints

TRACKED = "wandb"
"""The folder that the tracker writes to; it is still writing when the report goes up."""

Row = Mapping[str, Any]


def publish(
    folder: RunFolder, checkpoints: Checkpoints | None, tracker: Tracker, done: Mapping[str, Any], rows: Sequence[Row]
) -> None:
    """Finish a run; its report, written and stored last, is what makes it finished.

    Raises TransientError, which says where everything is, when the store cannot be reached.
    """
    folder.write("report.html", html.page(done, _plots(folder, done, rows)))
    folder.write_json(REPORT, done)
    _upload(folder, checkpoints)
    tracker.summary(report.flat(done))
    tracker.finish(0)
    if tracker.sync_command:  # what the tracker's server lacks is kept with the run
        folder.publish_folder(TRACKED)
    events.emit("done", message=report.sentence(done), report=f"{folder.uri}/{REPORT}")


def _plots(folder: RunFolder, done: Mapping[str, Any], rows: Sequence[Row]) -> list[Path]:
    """The plots that could be drawn: a result is worth more than its picture."""
    curves, confusion = folder.path("plots/curves.png"), folder.path("plots/confusion.png")
    try:
        plots.confusion(done["test"]["confusion"], done["data"]["classes"], confusion)
        if rows:
            plots.curves(rows, curves)
    except Exception as error:
        events.warn(f"The plots could not be drawn ({error}).")
    return [path for path in (curves, confusion) if path.exists()]


def _upload(folder: RunFolder, checkpoints: Checkpoints | None) -> None:
    try:
        if checkpoints:
            checkpoints.flush()
        folder.publish_all(last=REPORT, leave_out=[CHECKPOINTS, TRACKED])
    except TransientError as error:
        raise TransientError(f"{error} The whole run is in {folder.local}: run the same command again.") from error
