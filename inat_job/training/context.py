"""What the commands share: from settings to images, to a network, to the metrics of a split, to a report."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inat_job import events, signals
from inat_job.checkpoints import training_state
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.manifest import Manifest
from inat_job.data.batches import Share
from inat_job.data.cache_index import Cache
from inat_job.data.module import ImageDataModule
from inat_job.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from inat_job.errors import ConflictError, JobError, Preempted
from inat_job.evaluation.metrics import summarise
from inat_job.evaluation.predictions import EvaluationProgress, predict
from inat_job.host import environment
from inat_job.models.build import BuildInputs, build
from inat_job.models.classifier import Classifier
from inat_job.models.flops import count
from inat_job.models.strategies import Architecture, apply_strategy, trainable_stages
from inat_job.reporting import report
from inat_job.reporting.tracking import Tracker, open_tracker
from inat_job.run.folders import storage_options
from inat_job.run.timing import Clock
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage.run_folder import RunFolder
from inat_job.training import feature_cache
from inat_job.training.execution import Execution, decide
from inat_job.training.trainer import make_trainer, memory_errors


@dataclass(frozen=True)
class RunContext:
    """What a command works with, once the images are there."""

    settings: Settings
    folder: RunFolder
    images: ImageDataModule
    execution: Execution
    checkpoints: CheckpointIndex
    clock: Clock
    stop: StopFlag
    group: ProcessGroup = SINGLE_PROCESS


def begin(
    settings: Settings,
    folder: RunFolder,
    cache: Cache,
    stored: dict[str, Any] | None,
    clock: Clock,
    stop: StopFlag,
    group: ProcessGroup = SINGLE_PROCESS,
) -> RunContext:
    """What a rank works with; its arithmetic is as `stored` where that is known, and in force from here."""
    environment.settle_cublas()
    with memory_errors():
        execution = decide(settings.train, stored, group.rank)
    execution.apply()
    cuda, share = execution.accelerator == "cuda", Share(group.rank.rank, group.size)
    images = ImageDataModule(cache, settings.train, cuda, share)
    return RunContext(settings, folder, images, execution, CheckpointIndex(folder, stop), clock, stop, group)


def network(work: RunContext, pretrained: bool) -> tuple[Architecture, Classifier]:
    """The network, with pretrained weights where no checkpoint will replace them, and its LightningModule."""
    settings, stop = work.settings, work.stop
    events.phase("build")
    signals.check(stop, "building the network")
    torch.manual_seed(settings.train.seed)
    needs = BuildInputs(
        classes=len(work.images.cache.index.classes),
        image_size=settings.data.image_size,
        pretrained=pretrained,
        cache_dir=Path(settings.data.cache_dir),
        options=storage_options(settings.storage),
        stop=stop,
    )
    architecture = build(settings.model, needs)
    if work.execution.channels_last:
        architecture.network.to(memory_format=torch.channels_last)
    return architecture, Classifier(architecture, settings.train, settings.data, work.images.steps_per_epoch)


def reside(work: RunContext) -> None:
    """Copy the images to the GPU, once and for all, if they fit there beside the network."""
    if work.execution.accelerator != "cuda":
        return
    squares, free = work.images.squares, torch.cuda.mem_get_info()[0]
    fits = squares.nbytes <= work.settings.train.resident_share * free
    events.emit("pixels", bytes=squares.nbytes, free_bytes=free, resident=fits)
    if fits:
        squares.reside(torch.device("cuda", torch.cuda.current_device()))


def features(work: RunContext, classifier: Classifier, plan: feature_cache.FeaturePlan) -> dict[str, Any]:
    """Have the features at hand that the first epochs are trained on; returns the report's section."""
    events.phase("features")
    trainer = make_trainer(work.execution, work.settings.train, [EvaluationProgress(work.stop, "features")])
    needs = feature_cache.FeatureInputs(work.settings, work.execution, work.images, classifier, trainer, work.stop)
    with memory_errors():
        return feature_cache.prepare(needs, plan)


def load_weights(classifier: Classifier, path: Path) -> None:
    """Put a checkpoint's weights into the classifier. Raises ConflictError when they are of another network."""
    try:
        classifier.load_state_dict(training_state.read(path)["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        detail = str(error).splitlines()[-1].strip()
        raise ConflictError(f"{path} holds the weights of another network: {detail}") from None


def check_classes(folder: RunFolder, stored: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Raise ConflictError if the run learnt other classes, where its config.json or its model tells."""
    model = None if stored.get("classes") else folder.read_json("model/model.json")
    learnt = (model if isinstance(model, dict) else stored).get("classes")
    if learnt and list(learnt) != list(classes):
        other = sorted(set(learnt) ^ set(classes))
        raise ConflictError(
            f"{folder.uri} learnt {len(learnt)} classes and --data has {len(classes)}, differing in "
            f"{', '.join(other[:5]) or 'their order'}: it needs data of the same classes."
        )


@contextmanager
def tracked(settings: Settings, folder: RunFolder) -> Iterator[Tracker]:
    """The tracker of a run, ended with the job's exit code when it fails; who succeeds ends it with the report."""
    environment.calm_wandb()
    tracker = open_tracker(
        settings.tracker.mode,  # type: ignore[arg-type]
        run_id=folder.run_id,
        project=settings.tracker.project,
        entity=settings.tracker.entity,
        folder=folder.local,
        config=settings.as_dict(),
        has_key=environment.has_wandb_key(),
    )
    try:
        yield tracker
    except Preempted:
        tracker.preempting()
        tracker.finish(Preempted.exit_code)
        raise
    except BaseException as error:
        tracker.finish(error.exit_code if isinstance(error, JobError) else 1)
        raise


def evaluate(work: RunContext, classifier: Classifier, rows: Any, split: str) -> dict[str, Any]:
    """The report's section of the split (validation or test) with these rows of the cache; each rank does its share."""
    events.phase("validate" if split == "validation" else "test")
    group = work.group
    trainer = make_trainer(
        work.execution, work.settings.train, [EvaluationProgress(work.stop, split, group.any_rank_async)], group
    )
    with work.clock.phase("test_s"), memory_errors(), group.rank_errors():
        parts = predict(trainer, classifier, work.images.batches(rows))
        group.drain()
        logits, labels = (group.all_gather_rows(part, len(rows)) for part in parts)
    return summarise(logits, labels, work.images.cache.index.classes)


def report_of(
    work: RunContext,
    architecture: Architecture,
    checkpoint: Manifest,
    tracker: Tracker,
    measured: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    reused: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole report; `measured` has the sections of the splits, `history` the attempts at the run, `reused` what
    features it was trained on."""
    settings, newest = work.settings, work.checkpoints.newest()
    epochs = settings.train.epochs
    apply_strategy(architecture, trainable_stages(architecture, epochs - 1, epochs))  # what the run trained in the end
    return report.build(
        part=settings.part,
        run_id=work.folder.run_id,
        **measured,
        model={"name": architecture.name, **count(architecture.network, settings.data.image_size).as_dict()},
        data=_data_section(work.images),
        settings=settings.as_dict(),
        timing=work.clock.timing(newest.train_s),
        throughput={"train_images_per_s": newest.images_per_s},
        reuse=reused,
        cost=report.cost(work.group.size, work.clock.wall_s(), settings.run.price_per_hour),
        checkpoint={
            "uri": f"{work.checkpoints.folder.uri}/{checkpoint.name}",
            "sha256": checkpoint.sha256,
            "epoch": checkpoint.epoch,
            "step": checkpoint.step,
        },
        history=list(history),
        tracker={"mode": tracker.mode, "run_id": tracker.run_id, "url": tracker.url},
        environment=report.environment(work.execution.device, work.execution.as_dict()),
    )


def _data_section(images: ImageDataModule) -> Mapping[str, Any]:
    index = images.cache.index
    return {
        "uri": index.source,
        "digest": index.digest,
        "split_digest": images.split_digest,
        "n_train": len(images.train_rows),
        "n_val": len(images.val_rows),
        "n_test": len(images.test_rows),
        "n_train_dropped_per_epoch": images.dropped_per_epoch,
        "in_both_train_and_test": len(index.in_both_splits()),
        "classes": list(index.classes),
        "rejected": list(index.rejected),
    }
