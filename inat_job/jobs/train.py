"""The main job, once the pictures are prepared: train, test, report."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from inat_job import events
from inat_job.data.index import Cache
from inat_job.errors import ConflictError
from inat_job.evaluation.predictions import Watch
from inat_job.jobs import folders, room, stages
from inat_job.jobs.claim import CONFIG, read_config
from inat_job.jobs.clock import Clock
from inat_job.jobs.hold import Held
from inat_job.jobs.publish import publish, store_checkpoints
from inat_job.jobs.stages import Work
from inat_job.models.classifier import Classifier
from inat_job.models.export import export
from inat_job.models.strategies import Architecture
from inat_job.platforms.ranks import ALONE, Rank
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.training import compiling, manifest, reuse
from inat_job.training.absent import Absent
from inat_job.training.checkpoints import Checkpoints
from inat_job.training.crew import BY_ITSELF
from inat_job.training.execution import with_compile
from inat_job.training.fit import fit, make_trainer, memory_errors
from inat_job.training.journal import NAME as METRICS
from inat_job.training.journal import Journal
from inat_job.training.keeper import Keeper
from inat_job.training.manifest import Manifest
from inat_job.training.meeting import meet
from inat_job.training.metrics_log import MetricsLog
from inat_job.training.uploader import Uploader, uploading


def run(
    settings: Settings,
    held: Held,
    stored: dict[str, Any],
    cache: Cache,
    clock: Clock,
    stop: StopFlag,
    rank: Rank = ALONE,
) -> None:
    """Do what is left of a run that is held, and whose config.json is `stored`; other ranks follow (jobs/follow.py)."""
    crew = meet(rank, stop) if rank.size > 1 else BY_ITSELF
    assert crew
    with crew.cause.telling():
        crew.tell_here([str(cache.folder), cache.index.source])
        _lead(stages.begin(settings, held.folder, cache, stored["execution"], clock, stop, crew), held, stored)
        crew.part()


def _lead(work: Work, held: Held, stored: dict[str, Any]) -> None:
    """Find out where the run stands, tell the other ranks, and do it with them."""
    settings, folder, crew = work.settings, work.folder, work.crew
    latest = work.checkpoints.discover(spooled=True).latest()
    crew.tell({"execution": work.execution.as_dict(), "resumed": manifest.text(latest[0]) if latest else None})
    connect(work)
    if latest:
        crew.share(latest[1])
    architecture, classifier = stages.network(work, pretrained=latest is None and not settings.run.init_from)
    room.check_training(architecture, folder.path(CONFIG).parent)
    stages.reside(work)
    if latest:
        _check_data(work, latest[0])
    else:
        work, stored = _start(work, architecture, classifier, stored)
    crew.tell(stored)
    if work.execution.compile:
        compiling.compile_in_place(architecture.network, work.execution.compile_mode)
    _finish(work, held, stored, latest, architecture, classifier)


def _finish(
    work: Work,
    held: Held,
    stored: dict[str, Any],
    latest: tuple[Manifest, Path] | None,
    architecture: Architecture,
    classifier: Classifier,
) -> None:
    """Train from `latest` on, test and report: the run is decided on, and all ranks know."""
    settings, folder = work.settings, held.folder
    resumed = latest[0] if latest else None
    work.clock.earlier(resumed.train_s if resumed else 0.0)
    held.lease.started(resumed.step if resumed else 0)
    journal = Journal(folder, resumed)
    with (
        stages.tracked(settings, folder) as tracker,
        uploading(work.checkpoints, held.lease, [METRICS], work.stop, settings.run.grace_seconds, resumed) as uploader,
    ):
        reused = features(work, classifier, stored.get("reuse"), latest)
        log = MetricsLog(journal, tracker.log, work.pictures.slice_size, work.crew)
        train(work, classifier, uploader, log, latest)
        best, path = work.checkpoints.best()
        stages.load_weights(classifier, work.crew.share(path))
        export(architecture, folder.path("model/model.json").parent, _description(work))
        measured = evaluate(work, classifier)
        store_checkpoints(folder, uploader, work.stop)
        history = held.lease.history(work.checkpoints.newest().ended)
        done = stages.report_of(work, architecture, best, tracker, measured, history, reused)
        publish(folder, held.lease, tracker, done, journal.rows)


def connect(work: Work) -> None:
    """Have tensors go between the ranks. Raises ConflictError where their devices can't do what is asked."""
    if work.crew.size > 1 and work.settings.train.sync_batch_norm and work.execution.accelerator == "cpu":
        raise ConflictError("--sync-batch-norm needs GPUs: torch has no such thing for a CPU; leave it out.")
    work.crew.connect(cuda=work.execution.accelerator == "cuda")


def evaluate(work: Work, classifier: Classifier) -> dict[str, Any]:
    """The report's sections of the splits."""
    return {
        "val": stages.evaluate(work, classifier, work.pictures.val_rows),
        "test": stages.evaluate(work, classifier, work.pictures.test_rows),
    }


def _start(
    work: Work, architecture: Architecture, classifier: Classifier, stored: dict[str, Any]
) -> tuple[Work, dict[str, Any]]:
    """Keep the decisions of the run's first start; from now on it can be resumed."""
    settings = work.settings
    if settings.run.init_from:
        _init_from(work, settings.run.init_from, classifier)
    plan = reuse.decide(architecture, classifier, settings, work.execution, work.pictures)
    load_of = partial(compiling.measure, architecture, settings, work.pictures, plan.epochs if plan else 0)
    work = replace(work, execution=with_compile(work.execution, settings.train, load_of))
    decided = stored | {
        "execution": work.execution.as_dict(),
        "classes": list(work.pictures.cache.index.classes),
        "reuse": plan.as_dict() if plan else None,
    }
    work.folder.write_json(CONFIG, decided)
    work.folder.publish(CONFIG)
    return work, decided


def features(
    work: Work, classifier: Classifier, plan: dict[str, Any] | None, latest: tuple[Manifest, Path] | None
) -> dict[str, Any] | None:
    """Have the features at hand that epochs which are still to come are trained on; returns the report's section."""
    if plan is None:
        return None
    done = latest[0].epoch - latest[0].validate if latest else 0
    if done >= plan["epochs"] or (latest and latest[0].ended):
        return plan
    if latest:
        stages.load_weights(classifier, latest[1])  # the stem's are as they were from the start
    return stages.features(work, classifier, reuse.Reuse(**plan))


def _init_from(work: Work, name: str, classifier: Classifier) -> None:
    """Start from the best weights of another run, a run id under `--output` or a URI."""
    folder = folders.folder_of(work.settings, name, work.stop)
    stages.check_classes(folder, read_config(folder) or {}, work.pictures.cache.index.classes)
    best, path = Checkpoints(folder, work.stop).discover().best()
    same_data = best.data_digest == work.pictures.cache.index.digest
    if same_data and best.split_digest != work.pictures.split_digest:
        events.warn(f"{folder.uri} was trained on pictures that are validated on here, which flatters: use its --seed.")
    stages.load_weights(classifier, work.crew.share(path))


def _check_data(work: Work, latest: Manifest) -> None:
    """Raise ConflictError unless the checkpoint was trained on these very pictures, split this way."""
    pictures = work.pictures
    if (latest.data_digest, latest.split_digest) != (pictures.cache.index.digest, pictures.split_digest):
        raise ConflictError(
            f"The data set at {pictures.cache.index.source} is not the one that {work.folder.uri} was trained on: "
            "bring the old one back, or change --run-id."
        )


def train(
    work: Work,
    classifier: Classifier,
    uploader: Uploader | Absent,
    log: MetricsLog,
    latest: tuple[Manifest, Path] | None,
) -> None:
    """Train what is left, as every rank does."""
    work.crew.gather()  # weights and features may be here on one machine, and minutes away on another
    settings, (resumed, path) = work.settings, latest or (None, None)
    keeper = Keeper(settings, work.pictures, work.checkpoints, uploader, log, work.stop, resumed, work.crew)
    if resumed and path and resumed.validate:
        with work.crew.watched():
            _validate(work, classifier, resumed, path)
            log.validated(classifier, resumed.step, resumed.epoch - 1)
            keeper.validated(classifier)
    if not keeper.ended:
        trainer = make_trainer(work.execution, settings.train, [log, keeper], work.crew)
        fit(trainer, classifier, work.pictures, path, work.crew)
    uploader.made()
    work.clock.first_step(log.first_step_at)


def _validate(work: Work, classifier: Classifier, resumed: Manifest, path: Path) -> None:
    """Do the validation that the last attempt owes to its last epoch."""
    events.phase("validate")
    stages.load_weights(classifier, path)
    work.pictures.train_batches.go_to(resumed.epoch - 1, len(work.pictures.train_batches))
    watch = Watch(work.stop, "validate", work.crew.vote)
    trainer = make_trainer(work.execution, work.settings.train, [watch], work.crew)
    with memory_errors():
        trainer.validate(classifier, datamodule=work.pictures, verbose=False)
        work.crew.settle()


def _description(work: Work) -> dict[str, Any]:
    """What model.json says beside the architecture."""
    data = work.settings.data
    return {
        "classes": list(work.pictures.cache.index.classes),
        "preprocessing": {"image_size": data.image_size, "eval_crop": data.eval_crop},
    }
