"""The end of a run: the report and its files are written to the run folder, stored, and reported to the tracker."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from inat_job import events
from inat_job.checkpoints.manifest import FOLDER as CHECKPOINTS
from inat_job.checkpoints.uploader import NullUploader, Uploader
from inat_job.errors import ConflictError, NoPermissionError, TransientError
from inat_job.evaluation.image_sheets import EvaluationImages
from inat_job.evaluation.pictures import Picture
from inat_job.evaluation.prediction_table import NAME as PREDICTIONS
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.host import process
from inat_job.job_status import STATUS
from inat_job.reporting import report
from inat_job.reporting.loggers import TENSORBOARD_FOLDER
from inat_job.reporting.report_page import render_report
from inat_job.reporting.tracking import Tracker
from inat_job.run.run_state import REPORT
from inat_job.signals import StopFlag
from inat_job.storage.lease import LeaseError
from inat_job.storage.retry import RetryableError
from inat_job.storage.run_folder import RunFolder
from inat_job.telemetry import metric_lines

_SIDE = 64
"""Pixels of an image's side in the tracker's table."""

TRACKER_FOLDER = "wandb"
"""The tracker's folder, stored after the report: the tracker still writes to it then."""


def publish(
    folder: RunFolder,
    tracker: Tracker,
    content: Mapping[str, Any],
    predictions: PredictionTable,
    pictures: Sequence[Picture] = (),
    next_command: str | None = None,
    images: EvaluationImages | None = None,
) -> None:
    """Finish a run whose checkpoints are stored. The report is stored last, and makes the run finished.

    `next_command` is what the log suggests to do with it, `images` are those of the tracker's table.

    Raises what the store raises, naming the local copy, and LeaseError if another job holds the run by now.
    """
    events.phase("upload")
    with folder.drafts(".") as drafts:
        predictions.write_csv(drafts / PREDICTIONS)
    _write_page(folder, content, predictions, pictures)
    _store_report(folder, content)
    tracker.log_images({each.name: (each.path, each.title) for each in pictures})
    _log_predictions(tracker, content, predictions, images)
    if (model := folder.local / "model").is_dir():
        tracker.log_model(model)
    _end_tracking(folder, tracker, content)
    test = content["test"]
    events.write_metrics(metric_lines.lines({"test_loss": test["loss"], "test_accuracy": test["accuracy"]}))
    STATUS.outcome = report.result_sentence(content)
    events.emit("result", **report.result_fields(content), run=folder.uri, next=next_command)
    events.emit("done", message=report.result_sentence(content), report=f"{folder.uri}/{REPORT}")


def _log_predictions(
    tracker: Tracker, content: Mapping[str, Any], predictions: PredictionTable, images: EvaluationImages | None
) -> None:
    tracker.log_table("test_predictions", *report.test_table(report.hardest(predictions, report.MOST_ROWS)))
    tracker.log_confusion(content["data"]["classes"], content["test"]["confusion"])
    if images:
        few = report.hardest(predictions, report.MOST_IMAGES)
        tracker.log_image_table("test_images", *report.test_table(few), lambda: images.shown(few.rows.tolist(), _SIDE))


def publish_trial(folder: RunFolder, tracker: Tracker, content: Mapping[str, Any]) -> None:
    """Finish a trial of a sweep: its report has no test, and no page, model or plots are made of it.

    Raises as `publish` does.
    """
    events.phase("upload")
    _store_report(folder, content)
    _end_tracking(folder, tracker, content)


def _store_report(folder: RunFolder, content: Mapping[str, Any]) -> None:
    """Store the run's files, and the report after them."""
    with naming_local_copy(folder):
        folder.write_json(REPORT, content)
        folder.publish_all(last=REPORT, leave_out=[CHECKPOINTS, TRACKER_FOLDER])


def _end_tracking(folder: RunFolder, tracker: Tracker, content: Mapping[str, Any]) -> None:
    tracker.summary(report.flatten(content))
    tracker.finish(0)
    folder.join_attempt()
    if tracker.sync_command:  # the tracker's server does not have this run, so it is stored with the run
        folder.publish_folder(TRACKER_FOLDER)
    folder.publish_folder(TENSORBOARD_FOLDER)


def store_checkpoints(folder: RunFolder, uploader: Uploader | NullUploader, stop: StopFlag) -> None:
    """Wait until all checkpoints are stored. Raises what prevents that, naming the local copy."""
    events.phase("upload")
    with naming_local_copy(folder):
        uploader.finish(stop)


@contextmanager
def naming_local_copy(folder: RunFolder) -> Iterator[None]:
    """Add to the store's errors where on this machine the whole run is."""
    try:
        yield
    except LeaseError:
        raise
    except (TransientError, NoPermissionError, ConflictError) as error:
        if not folder.remote:
            raise
        kind = TransientError if isinstance(error, RetryableError) else type(error)  # whose argument is no sentence
        raise kind(f"{error} The whole run is in {folder.local}: run the same command again.") from error


def _write_page(
    folder: RunFolder, content: Mapping[str, Any], predictions: PredictionTable, pictures: Sequence[Picture]
) -> None:
    """Write report.html with the plots; a page that cannot be made is only a warning, as the run's result is there."""
    try:
        page = render_report(content, predictions, pictures, process.command_prefix())
    except Exception as error:
        events.warn(f"report.html could not be made ({error!r}).")
        return
    folder.write("report.html", page)
