"""The main job: pull, prepare, train, test, report."""

from pathlib import Path
from typing import Any

from inat_job.data.module import Pictures
from inat_job.errors import ConflictError
from inat_job.jobs import folders, stages
from inat_job.jobs.claim import CONFIG, config_of
from inat_job.jobs.clock import Clock
from inat_job.jobs.publish import publish
from inat_job.jobs.stages import Work
from inat_job.models.classifier import Classifier
from inat_job.models.export import export
from inat_job.platforms import local
from inat_job.reporting.tracking import Tracker
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage.run_folder import RunFolder
from inat_job.training.checkpoints import Checkpoints, Manifest
from inat_job.training.execution import decide
from inat_job.training.fit import fit, make_trainer
from inat_job.training.journal import NAME as METRICS
from inat_job.training.journal import Journal
from inat_job.training.keeper import Keeper
from inat_job.training.metrics_log import MetricsLog


def run(settings: Settings, folder: RunFolder, stored: dict[str, Any], stop: StopFlag, started: float) -> None:
    """Do what is left of a run, whose folder holds the config.json `stored`."""
    clock = Clock(started)
    pictures = Pictures(stages.pictures_cache(settings, clock, stop), settings.train)
    execution = decide(settings.train, stored["execution"])
    local.settle_cublas()
    execution.apply()
    work = Work(settings, folder, pictures, execution, Checkpoints(folder, [METRICS]), clock, stop)
    latest = work.checkpoints.discover().latest()
    architecture, classifier = stages.network(work, pretrained=latest is None and not settings.run.init_from)
    if latest:
        _check_data(work, latest[0])
    else:
        _start(work, classifier)
    with stages.tracked(settings, folder) as tracker:
        rows = _train(work, classifier, tracker, latest)
        best, path = work.checkpoints.best()
        stages.load_weights(classifier, path)
        export(architecture, folder.path("model/model.json").parent, _description(work))
        measured = {
            "val": stages.evaluate(work, classifier, pictures.val_rows),
            "test": stages.evaluate(work, classifier, pictures.test_rows),
        }
        done = stages.report_of(work, architecture, best, tracker, measured)
        publish(folder, work.checkpoints, tracker, done, rows)


def _start(work: Work, classifier: Classifier) -> None:
    """Claim the folder for these settings and decisions; from now on the run can be resumed."""
    settings = work.settings
    if settings.run.init_from:
        _init_from(work, settings.run.init_from, classifier)
    classes = work.pictures.cache.index.classes
    work.folder.write_json(CONFIG, config_of(settings, work.execution.as_dict(), command="train", classes=classes))
    work.folder.publish(CONFIG)


def _init_from(work: Work, name: str, classifier: Classifier) -> None:
    """Start from the best weights of another run, a run id under `--output` or a URI."""
    folder = folders.folder_of(work.settings, name)
    _, path = Checkpoints(folder).discover().best()
    stages.load_weights(classifier, path)


def _check_data(work: Work, latest: Manifest) -> None:
    """Raise ConflictError unless the checkpoint was trained on these very pictures, split this way."""
    pictures = work.pictures
    if (latest.data_digest, latest.split_digest) != (pictures.cache.index.digest, pictures.split_digest):
        raise ConflictError(
            f"The data set at {pictures.cache.index.source} is not the one that {work.folder.uri} was trained on: "
            "bring the old one back, or change --run-id."
        )


def _train(
    work: Work, classifier: Classifier, tracker: Tracker, latest: tuple[Manifest, Path] | None
) -> list[dict[str, Any]]:
    """Train what is left; the rows of the journal."""
    settings = work.settings
    resumed, path = latest or (None, None)
    journal = Journal(work.folder, resumed.step if resumed else 0)
    log = MetricsLog(journal, tracker.log, settings.train.batch_size // settings.train.accumulate)
    if not (resumed and resumed.complete):
        keeper = Keeper(settings, work.pictures, work.checkpoints, resumed, log, work.stop)
        fit(make_trainer(work.execution, settings.train, [log, keeper]), classifier, work.pictures, path)
    work.clock.first_step(log.first_step_at)
    return journal.rows


def _description(work: Work) -> dict[str, Any]:
    """What model.json says beside the architecture."""
    data = work.settings.data
    return {
        "classes": list(work.pictures.cache.index.classes),
        "preprocessing": {"image_size": data.image_size, "eval_crop": data.eval_crop},
    }
