"""The training story: what is left of a run, from prepared images to the published report, in the order of events.

Every rank executes this module from top to bottom and makes the same collective calls. Only rank 0 holds the run's
lease and writes: the others get an uploader and a tracker that do nothing. Before this, commands/train.py takes the
lease and prepares the images while torch is imported.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from inat_job import events
from inat_job.checkpoints import manifest
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.manifest import Manifest
from inat_job.checkpoints.uploader import NullUploader, Uploader, uploading
from inat_job.data.cache_index import Cache, checked
from inat_job.distributed import rendezvous
from inat_job.distributed.process_group import ProcessGroup
from inat_job.errors import BadDataError, ConflictError
from inat_job.evaluation.predictions import EvaluationProgress
from inat_job.models.classifier import Classifier
from inat_job.models.export import export
from inat_job.models.strategies import Architecture
from inat_job.reporting.publish import publish, store_checkpoints
from inat_job.run import resources
from inat_job.run.folders import folder_of
from inat_job.run.job import Job
from inat_job.run.run_state import CONFIG, HeldRun, read_config
from inat_job.training import execution, feature_cache
from inat_job.training.checkpoint_callback import CheckpointCallback
from inat_job.training.context import RunContext, check_classes, load_weights
from inat_job.training.feature_cache import FeaturePlan
from inat_job.training.metrics_log import NAME as METRICS
from inat_job.training.metrics_log import MetricsFile, MetricsLog
from inat_job.training.results import evaluate, make_report, tracked
from inat_job.training.trainer import fit, make_trainer, memory_errors

Checkpoint = tuple[Manifest, Path]
"""A checkpoint's manifest, and its file on this machine."""


def run(job: Job, held: HeldRun | None, cache: Cache | None) -> None:
    """Join the other ranks and do what is left of the run.

    `held` is the run with its lease, on rank 0 alone; `cache` has the images, on each machine's first rank. A rank that
    starts after the run was finished has nothing to do.
    """
    group = rendezvous.join(job.rank, job.stop, job.is_finished)
    if group is None:
        return
    with group:
        config = group.broadcast(held.config if held else None)
        context = RunContext.create(job, _shared_cache(group, cache), config["execution"], group)
        _init_collectives(context)
        train_and_test(context, held, config)


def train_and_test(context: RunContext, held: HeldRun | None, config: dict[str, Any]) -> None:
    """The run itself: model, resume, features, training, best weights, export, evaluation, report."""
    settings, group = context.settings, context.group

    # Model, and the state to resume from.
    resumed = _shared_checkpoint(group, lambda: context.checkpoints.discover(spooled=True).latest())
    architecture, classifier = context.build_network(pretrained=not resumed and not settings.run.init_from)
    if group.is_main:
        resources.check_training(architecture, context.folder.path(CONFIG).parent)
    context.move_images_to_gpu()
    if resumed:
        _check_same_data(context, resumed[0])
    else:
        _init_from(context, classifier)
        config = _first_decisions(context, architecture, classifier, config)
    if context.execution.compile:
        execution.compile_in_place(architecture.network)

    context.clock.earlier(resumed[0].train_s if resumed else 0.0)
    metrics = MetricsFile(context.folder, resumed[0] if resumed else None) if group.is_main else None
    with tracked(context) as tracker, _checkpoint_uploads(context, held, resumed) as uploader:
        # Training.
        reuse = _features(context, classifier, config["reuse"], resumed)
        log = MetricsLog(metrics, tracker.log, context.images.slice_size, group)
        group.barrier()  # weights and features may be ready on one machine, and minutes away on another
        _train(context, classifier, uploader, log, resumed)
        context.clock.first_step(log.first_step_at)

        # Results, with the weights of the best epoch.
        best = _shared_checkpoint(group, context.checkpoints.best)
        assert best
        load_weights(classifier, best[1])
        if group.is_main:
            export(architecture, context.folder.path("model/model.json").parent, _model_card(context))
        splits = {
            "val": evaluate(context, classifier, context.images.val_rows),
            "test": evaluate(context, classifier, context.images.test_rows),
        }
        store_checkpoints(context.folder, uploader, context.stop)
        if held:
            history = held.lease.history(context.checkpoints.newest().ended)
            report = make_report(context, architecture, best[0], tracker, splits, history, reuse)
            publish(context.folder, held.lease, tracker, report, metrics.rows if metrics else ())


def _shared_cache(group: ProcessGroup, cache: Cache | None) -> Cache:
    """The images that each machine's first rank has prepared, for all ranks of the machine."""
    folder, source = group.broadcast_on_node([str(cache.folder), cache.index.source] if cache else None)
    if cache:
        return cache
    shared = checked(Path(folder))
    if shared is None:
        raise BadDataError(f"{folder}, prepared by another rank, cannot be read: run the same command again.")
    return replace(shared, index=replace(shared.index, source=source))


def _init_collectives(context: RunContext) -> None:
    accelerator = context.execution.accelerator
    if context.group.size > 1 and context.settings.train.sync_batch_norm and accelerator == "cpu":
        raise ConflictError("--sync-batch-norm needs GPUs, since torch has none for a CPU: leave it out.")
    context.group.init_collectives(cuda=accelerator == "cuda")


def _shared_checkpoint(group: ProcessGroup, find: Callable[[], Checkpoint | None]) -> Checkpoint | None:
    """The checkpoint that rank 0 finds, on every rank."""
    found = find() if group.is_main else None
    text = group.broadcast(manifest.text(found[0]) if found else None)
    if text is None:
        return None
    return manifest.parse(text), group.broadcast_file(found[1] if found else None)


def _check_same_data(context: RunContext, resumed: Manifest) -> None:
    """Raise ConflictError unless the checkpoint was trained on these very images, split this way."""
    images = context.images
    if (resumed.data_digest, resumed.split_digest) != (images.cache.index.digest, images.split_digest):
        raise ConflictError(
            f"The data set at {images.cache.index.source} is not the one that {context.folder.uri} was trained on: "
            "bring the old one back, or change --run-id."
        )


def _init_from(context: RunContext, classifier: Classifier) -> None:
    """With `--init-from`, start from the best weights of another run (a run id under `--output`, or a URI)."""
    if context.settings.run.init_from:
        best = _shared_checkpoint(context.group, partial(_best_of, context, context.settings.run.init_from))
        assert best
        load_weights(classifier, best[1])


def _best_of(context: RunContext, name: str) -> Checkpoint:
    folder, index = folder_of(context.settings, name, context.stop), context.images.cache.index
    check_classes(folder, read_config(folder) or {}, index.classes)
    best = CheckpointIndex(folder, context.stop).discover().best()
    if best[0].data_digest == index.digest and best[0].split_digest != context.images.split_digest:
        events.warn(f"{folder.uri} was trained on this run's validation images, which flatters: use its --seed.")
    return best


def _first_decisions(
    context: RunContext, architecture: Architecture, classifier: Classifier, config: dict[str, Any]
) -> dict[str, Any]:
    """What is decided once, as a run first starts: from here on it can be resumed. Returns the new config.json."""
    plan = feature_cache.decide(context, architecture, classifier) if context.group.is_main else None
    config = config | {
        "execution": context.execution.as_dict(),
        "classes": list(context.images.cache.index.classes),
        "reuse": context.group.broadcast(plan.as_dict() if plan else None),
    }
    if context.group.is_main:
        context.folder.write_json(CONFIG, config)
        context.folder.publish(CONFIG)
    return config


@contextmanager
def _checkpoint_uploads(
    context: RunContext, held: HeldRun | None, resumed: Checkpoint | None
) -> Iterator[Uploader | NullUploader]:
    """Uploads of checkpoints in the background, on rank 0; what is pending is stored before the block is left."""
    if held is None:
        yield NullUploader()
        return
    held.lease.started(resumed[0].step if resumed else 0)
    grace_s, manifest = context.settings.run.grace_seconds, resumed[0] if resumed else None
    with uploading(context.checkpoints, held.lease, [METRICS], context.stop, grace_s, manifest) as uploader:
        yield uploader


def _features(
    context: RunContext, classifier: Classifier, plan: dict[str, Any] | None, resumed: Checkpoint | None
) -> dict[str, Any] | None:
    """Prepare the cached features that epochs still to come train on; returns the report's section."""
    if plan is None:
        return None
    epochs_done = resumed[0].epoch - resumed[0].validate if resumed else 0
    if epochs_done >= plan["epochs"] or (resumed and resumed[0].ended):
        return plan
    if resumed:
        load_weights(classifier, resumed[1])  # the stem's weights are those of the start
    return feature_cache.prepare(context, classifier, FeaturePlan(**plan))


def _train(
    context: RunContext,
    classifier: Classifier,
    uploader: Uploader | NullUploader,
    log: MetricsLog,
    resumed: Checkpoint | None,
) -> None:
    """Train what is left, after the validation that the last attempt may still owe."""
    checkpoint, path = resumed or (None, None)
    callback = CheckpointCallback(context, uploader, log, checkpoint)
    if checkpoint and path and checkpoint.validate:
        _validate(context, classifier, checkpoint, path)
        log.validated(classifier, checkpoint.step, checkpoint.epoch - 1)
        callback.add_validation(classifier)
    if not callback.ended:
        trainer = make_trainer(context.execution, context.settings.train, [log, callback], context.group)
        fit(trainer, classifier, context.images, path, context.group)
    uploader.made()


def _validate(context: RunContext, classifier: Classifier, checkpoint: Manifest, path: Path) -> None:
    events.phase("validate")
    load_weights(classifier, path)
    context.images.train_batches.go_to(checkpoint.epoch - 1, len(context.images.train_batches))
    progress = EvaluationProgress(context.stop, "validate", context.group.any_rank_async)
    trainer = make_trainer(context.execution, context.settings.train, [progress], context.group)
    with memory_errors(), context.group.lost_rank_errors():
        trainer.validate(classifier, datamodule=context.images, verbose=False)
        context.group.drop_pending()


def _model_card(context: RunContext) -> dict[str, Any]:
    """What model.json holds besides the architecture."""
    data = context.settings.data
    return {
        "classes": list(context.images.cache.index.classes),
        "preprocessing": {"image_size": data.image_size, "eval_crop": data.eval_crop},
    }
