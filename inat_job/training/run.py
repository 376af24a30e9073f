"""The main job, once the images are prepared: train, test, report."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from inat_job import events
from inat_job.checkpoints import manifest
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.manifest import Manifest
from inat_job.checkpoints.uploader import NullUploader, Uploader, uploading
from inat_job.data.cache_index import Cache
from inat_job.distributed.process_group import SINGLE_PROCESS
from inat_job.distributed.ranks import ALONE, Rank
from inat_job.distributed.rendezvous import join
from inat_job.errors import ConflictError
from inat_job.evaluation.predictions import EvaluationProgress
from inat_job.models.classifier import Classifier
from inat_job.models.export import export
from inat_job.models.strategies import Architecture
from inat_job.reporting.publish import publish, store_checkpoints
from inat_job.run import folders, resources
from inat_job.run.run_state import CONFIG, HeldRun, read_config
from inat_job.run.timing import Clock
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.training import compiling, context, feature_cache
from inat_job.training.checkpoint_callback import CheckpointCallback
from inat_job.training.context import RunContext
from inat_job.training.execution import with_compile
from inat_job.training.introduction import introduce
from inat_job.training.metrics_log import NAME as METRICS
from inat_job.training.metrics_log import MetricsFile, MetricsLog
from inat_job.training.trainer import fit, make_trainer, memory_errors


def run(
    settings: Settings,
    held: HeldRun,
    stored: dict[str, Any],
    cache: Cache,
    clock: Clock,
    stop: StopFlag,
    rank: Rank = ALONE,
) -> None:
    """Do what is left of a run that is held, and whose config.json is `stored`; other ranks follow (jobs/follow.py)."""
    group = join(rank, stop) if rank.size > 1 else SINGLE_PROCESS
    assert group
    with group.cause.telling():
        group.broadcast_on_node([str(cache.folder), cache.index.source])
        _lead(context.begin(settings, held.folder, cache, stored["execution"], clock, stop, group), held, stored)
        group.finish()


def _lead(work: RunContext, held: HeldRun, stored: dict[str, Any]) -> None:
    """Find out where the run stands, tell the other ranks, and do it with them."""
    settings, folder, group = work.settings, work.folder, work.group
    latest = work.checkpoints.discover(spooled=True).latest()
    group.broadcast({"execution": work.execution.as_dict(), "resumed": manifest.text(latest[0]) if latest else None})
    connect(work)
    if latest:
        group.broadcast_file(latest[1])
    architecture, classifier = context.network(work, pretrained=latest is None and not settings.run.init_from)
    resources.check_training(architecture, folder.path(CONFIG).parent)
    context.reside(work)
    if latest:
        _check_data(work, latest[0])
    else:
        work, stored = _start(work, architecture, classifier, stored)
    group.broadcast(stored)
    introduce(work, architecture, latest[0] if latest else None)
    if work.execution.compile:
        compiling.compile_in_place(architecture.network, work.execution.compile_mode)
    _finish(work, held, stored, latest, architecture, classifier)


def _finish(
    work: RunContext,
    held: HeldRun,
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
    journal = MetricsFile(folder, resumed)
    with (
        context.tracked(settings, folder) as tracker,
        uploading(work.checkpoints, held.lease, [METRICS], work.stop, settings.run.grace_seconds, resumed) as uploader,
    ):
        reused = features(work, classifier, stored.get("reuse"), latest)
        log = MetricsLog(journal, tracker.log, work.images.slice_size, work.group)
        train(work, classifier, uploader, log, latest)
        best, path = work.checkpoints.best()
        context.load_weights(classifier, work.group.broadcast_file(path))
        export(architecture, folder.path("model/model.json").parent, _description(work))
        measured = evaluate(work, classifier)
        store_checkpoints(folder, uploader, work.stop)
        history = held.lease.history(work.checkpoints.newest().ended)
        done = context.report_of(work, architecture, best, tracker, measured, history, reused)
        publish(folder, held.lease, tracker, done, journal.rows)


def connect(work: RunContext) -> None:
    """Have tensors go between the ranks. Raises ConflictError where their devices can't do what is asked."""
    if work.group.size > 1 and work.settings.train.sync_batch_norm and work.execution.accelerator == "cpu":
        raise ConflictError("--sync-batch-norm needs GPUs: torch has no such thing for a CPU; leave it out.")
    work.group.init_tensors(cuda=work.execution.accelerator == "cuda")


def evaluate(work: RunContext, classifier: Classifier) -> dict[str, Any]:
    """The report's sections of the splits."""
    return {
        "val": context.evaluate(work, classifier, work.images.val_rows, "validation"),
        "test": context.evaluate(work, classifier, work.images.test_rows, "test"),
    }


def _start(
    work: RunContext, architecture: Architecture, classifier: Classifier, stored: dict[str, Any]
) -> tuple[RunContext, dict[str, Any]]:
    """Keep the decisions of the run's first start; from now on it can be resumed."""
    settings = work.settings
    if settings.run.init_from:
        _init_from(work, settings.run.init_from, classifier)
    plan = feature_cache.decide(architecture, classifier, settings, work.execution, work.images)
    load_of = partial(compiling.measure, architecture, settings, work.images, plan.epochs if plan else 0)
    work = replace(work, execution=with_compile(work.execution, settings.train, load_of))
    decided = stored | {
        "execution": work.execution.as_dict(),
        "classes": list(work.images.cache.index.classes),
        "reuse": plan.as_dict() if plan else None,
    }
    work.folder.write_json(CONFIG, decided)
    work.folder.publish(CONFIG)
    return work, decided


def features(
    work: RunContext, classifier: Classifier, plan: dict[str, Any] | None, latest: tuple[Manifest, Path] | None
) -> dict[str, Any] | None:
    """Have the features at hand that epochs which are still to come are trained on; returns the report's section."""
    if plan is None:
        return None
    done = latest[0].epoch - latest[0].validate if latest else 0
    if done >= plan["epochs"] or (latest and latest[0].ended):
        return plan
    if latest:
        context.load_weights(classifier, latest[1])  # the stem's are as they were from the start
    return context.features(work, classifier, feature_cache.FeaturePlan(**plan))


def _init_from(work: RunContext, name: str, classifier: Classifier) -> None:
    """Start from the best weights of another run, a run id under `--output` or a URI."""
    folder = folders.folder_of(work.settings, name, work.stop)
    context.check_classes(folder, read_config(folder) or {}, work.images.cache.index.classes)
    best, path = CheckpointIndex(folder, work.stop).discover().best()
    same_data = best.data_digest == work.images.cache.index.digest
    if same_data and best.split_digest != work.images.split_digest:
        events.warn(f"{folder.uri} was trained on images that are validated on here, which flatters: use its --seed.")
    context.load_weights(classifier, work.group.broadcast_file(path))


def _check_data(work: RunContext, latest: Manifest) -> None:
    """Raise ConflictError unless the checkpoint was trained on these very images, split this way."""
    images = work.images
    if (latest.data_digest, latest.split_digest) != (images.cache.index.digest, images.split_digest):
        raise ConflictError(
            f"The data set at {images.cache.index.source} is not the one that {work.folder.uri} was trained on: "
            "bring the old one back, or change --run-id."
        )


def train(
    work: RunContext,
    classifier: Classifier,
    uploader: Uploader | NullUploader,
    log: MetricsLog,
    latest: tuple[Manifest, Path] | None,
) -> None:
    """Train what is left, as every rank does."""
    work.group.barrier()  # weights and features may be here on one machine, and minutes away on another
    settings, (resumed, path) = work.settings, latest or (None, None)
    checkpoint_callback = CheckpointCallback(
        settings, work.images, work.checkpoints, uploader, log, work.stop, resumed, work.group
    )
    if resumed and path and resumed.validate:
        with work.group.rank_errors():
            _validate(work, classifier, resumed, path)
            log.validated(classifier, resumed.step, resumed.epoch - 1)
            checkpoint_callback.validated(classifier)
    if not checkpoint_callback.ended:
        trainer = make_trainer(work.execution, settings.train, [log, checkpoint_callback], work.group)
        fit(trainer, classifier, work.images, path, work.group)
    uploader.made()
    work.clock.first_step(log.first_step_at)


def _validate(work: RunContext, classifier: Classifier, resumed: Manifest, path: Path) -> None:
    """Do the validation that the last attempt owes to its last epoch."""
    events.phase("validate")
    context.load_weights(classifier, path)
    work.images.train_batches.go_to(resumed.epoch - 1, len(work.images.train_batches))
    watch = EvaluationProgress(work.stop, "validate", work.group.any_rank_async)
    trainer = make_trainer(work.execution, work.settings.train, [watch], work.group)
    with memory_errors():
        trainer.validate(classifier, datamodule=work.images, verbose=False)
        work.group.drain()


def _description(work: RunContext) -> dict[str, Any]:
    """What model.json says beside the architecture."""
    data = work.settings.data
    return {
        "classes": list(work.images.cache.index.classes),
        "preprocessing": {"image_size": data.image_size, "eval_crop": data.eval_crop},
    }
