"""The end of a run: the report and its companions written here, then stored, then told to the tracker."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inat_job import events
from inat_job.checkpoints.manifest import FOLDER as CHECKPOINTS
from inat_job.checkpoints.uploader import Uploader
from inat_job.errors import ConflictError, NoPermissionError, TransientError
from inat_job.evaluation import plots
from inat_job.job_status import STATUS
from inat_job.reporting import html, report
from inat_job.reporting.tracking import Tracker
from inat_job.run.run_state import REPORT
from inat_job.signals import StopFlag
from inat_job.storage.lease import Lease, LeaseError
from inat_job.storage.run_folder import RunFolder
from inat_job.telemetry import metric_lines

TRACKED = "wandb"
"""The folder that the tracker writes to; it is still writing when the report goes up."""

Row = Mapping[str, Any]


def publish(
    folder: RunFolder, lease: Lease, tracker: Tracker, done: Mapping[str, Any], rows: Sequence[Row] = ()
) -> None:
    """Finish a run whose checkpoints are stored; its report, written and stored last, is what makes it finished.

    Raises what the store raises, saying where everything is, and LeaseError when the run has another holder by now.
    """
    events.phase("upload")
    folder.write("report.html", html.page(done, _plots(folder, done, rows)))
    with saying_where(folder):
        lease.check()
        folder.write_json(REPORT, done)
        folder.publish_all(last=REPORT, leave_out=[CHECKPOINTS, TRACKED])
    tracker.summary(report.flat(done))
    tracker.finish(0)
    if tracker.sync_command:  # what the tracker's server lacks is kept with the run
        folder.publish_folder(TRACKED)
    test = done["test"]
    events.write_metrics(metric_lines.lines({"test_loss": test["loss"], "test_accuracy": test["accuracy"]}))
    STATUS.outcome = report.sentence(done)
    events.emit("result", **report.result(done), run=folder.uri, trained=bool(rows))
    events.emit("done", message=report.sentence(done), report=f"{folder.uri}/{REPORT}")


def store_checkpoints(folder: RunFolder, uploader: Uploader, stop: StopFlag) -> None:
    """Wait until all checkpoints are stored, and raise what keeps them from it, saying where everything is."""
    events.phase("upload")
    with saying_where(folder):
        uploader.finish(stop)


@contextmanager
def saying_where(folder: RunFolder) -> Iterator[None]:
    """Add to the store's errors where the run is meanwhile."""
    try:
        yield
    except LeaseError:
        raise
    except (TransientError, NoPermissionError, ConflictError) as error:
        if not folder.remote:
            raise
        raise type(error)(f"{error} The whole run is in {folder.local}: run the same command again.") from error


def _plots(folder: RunFolder, done: Mapping[str, Any], rows: Sequence[Row]) -> list[Path]:
    """The plots that could be drawn: a result is worth more than its image."""
    curves, confusion = folder.path("plots/curves.png"), folder.path("plots/confusion.png")
    try:
        plots.confusion(done["test"]["confusion"], done["data"]["classes"], confusion)
        if rows:
            plots.curves(rows, curves)
    except Exception as error:
        events.warn(f"The plots could not be drawn ({error}).")
    return [path for path in (curves, confusion) if path.exists()]
