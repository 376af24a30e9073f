"""What every step of a run receives: one immutable record, made once the images are ready, on every rank."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch

from inat_job import events, signals
from inat_job.checkpoints import training_state
from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.data import splits
from inat_job.data.batches import DeviceRows, Shard
from inat_job.data.cache_index import Cache
from inat_job.data.features import Features
from inat_job.data.module import ImageDataModule
from inat_job.distributed.process_group import SINGLE_PROCESS, ProcessGroup
from inat_job.errors import BadDataError, ConflictError, last_line
from inat_job.host import device_faults, environment
from inat_job.job_status import STATUS
from inat_job.models.build import BuildInputs, build
from inat_job.models.classifier import Classifier
from inat_job.models.strategies import Architecture
from inat_job.run.job import Job
from inat_job.run.run_state import storage_options
from inat_job.run.timing import Clock
from inat_job.run.trial_link import TrialLink
from inat_job.settings import Settings, TrainSettings
from inat_job.signals import StopFlag
from inat_job.storage.run_folder import RunFolder
from inat_job.training.execution import Execution, decide

_LISTED = 5
"""Names of classes that an error lists."""


@dataclass(frozen=True)
class RunContext:
    """The settings, the run folder, the images and checkpoints of a run, how it computes, and with which ranks."""

    settings: Settings
    folder: RunFolder
    images: ImageDataModule
    execution: Execution
    checkpoints: CheckpointIndex
    clock: Clock
    stop: StopFlag
    group: ProcessGroup = SINGLE_PROCESS
    trial: TrialLink | None = None
    tracked_as: str | None = None

    @classmethod
    def create(
        cls, job: Job, cache: Cache, execution: Mapping[str, Any] | None = None, group: ProcessGroup = SINGLE_PROCESS
    ) -> Self:
        """The context of this rank. `execution` holds the stored decisions on how to compute, if the run has any.

        Rank 0 decides, and every rank applies the same decisions to its process. Raises ConflictError.
        """
        environment.set_cublas_workspace()
        train = job.settings.train
        with device_faults.device_errors():
            own = decide(train, dict(execution or {}), group.rank) if group.is_main else None
            common = group.broadcast(own.as_dict() if own else None)
            decided = own or decide(train, common, group.rank)
        decided.apply()
        shard = Shard(group.rank.rank, group.size)
        cache = cache.without_test() if job.trial else cache
        images = ImageDataModule(cache, train, job.settings.data, shard, on_gpu=decided.accelerator == "cuda")
        checkpoints = CheckpointIndex(job.folder, job.stop)
        place = (job.settings, job.folder, images, decided, checkpoints, job.clock, job.stop, group)
        return cls(*place, job.trial, job.tracked_as)

    @property
    def train(self) -> TrainSettings:
        """The recipe with the epochs that are trained: more than `--epochs` where `--min-images-seen` needs more."""
        train = self.settings.train
        return replace(train, epochs=max(train.epochs, -(-train.min_images_seen // self.images.images_per_epoch)))

    def build_network(self, pretrained: bool, lacking: Sequence[str] = ()) -> tuple[Architecture, Classifier]:
        """The network and its LightningModule, with pretrained weights unless a checkpoint is going to replace them.

        `lacking` is what the weights of the run's start lacked.
        """
        settings = self.settings
        events.phase("build")
        signals.check(self.stop, "building the network")
        torch.manual_seed(settings.train.seed)
        start_size = settings.train.start_size or settings.data.image_size
        inputs = BuildInputs(
            classes=len(self.images.cache.index.classes),
            image_size=settings.data.image_size,
            pretrained=pretrained,
            cache_dir=Path(settings.data.cache_dir),
            options=storage_options(settings.storage),
            stop=self.stop,
            other_sizes={"--test-size": settings.data.eval_size, "--start-size": start_size},
            lacking=tuple(lacking),
        )
        architecture = build(settings.model, inputs)
        if self.execution.channels_last:
            architecture.network.to(memory_format=torch.channels_last)
        steps, weights = self.images.steps_per_epoch, self.images.class_weights
        return architecture, Classifier(architecture, self.train, steps, weights)

    def move_images_to_gpu(self) -> None:
        """Copy all images to the GPU once, if they fit there beside the network; else batches come from the host."""
        self.place("pixels", self.images.pixel_rows)

    def place(self, event: str, rows: DeviceRows | Features) -> None:
        """Let a GPU's batches come from its own memory, if all rows fit there, or else through pinned memory."""
        if self.execution.accelerator != "cuda":
            return
        device, free = torch.device("cuda", torch.cuda.current_device()), torch.cuda.mem_get_info()[0]
        fits = rows.nbytes <= self.settings.train.resident_share * free
        try:
            rows.place(device, fits)
        except (MemoryError, RuntimeError) as error:
            if not fits or device_faults.fault_of(error) is not device_faults.Fault.MEMORY:
                raise
            events.warn(f"The {event} stay on the host: they no longer fit into the free memory of the GPU.")
            fits = False
            rows.place(device, fits)
        STATUS.resident = STATUS.resident or fits
        events.emit(event, bytes=rows.nbytes, free_bytes=free, resident=fits)


def load_weights(classifier: Classifier, path: Path) -> None:
    """Load a checkpoint's weights into the classifier. Raises ConflictError when they are another network's."""
    try:
        classifier.load_state_dict(training_state.read(path)["state_dict"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ConflictError(
            f"{path} holds the weights of another network ({last_line(error)}): use the options and the version "
            "of inat-job that it was trained with."
        ) from None


def check_classes(folder: RunFolder, config: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Raise ConflictError if the run in `folder` learned other classes, as far as its config.json or model says."""
    model = None if config.get("classes") else folder.read_json("model/model.json")
    learned = (model if isinstance(model, dict) else config).get("classes")
    if not isinstance(learned or [], list) or not all(isinstance(name, str) for name in learned or []):
        raise BadDataError(f"{folder.uri}/model/model.json names no classes: delete the run, or name another.")
    if learned and learned != list(classes):
        only = {"the model": set(learned) - set(classes), "--data": set(classes) - set(learned)}
        lists = [f"only {who} has {_listed(sorted(names))}" for who, names in only.items() if names]
        raise ConflictError(
            f"{folder.uri} learned {len(learned)} classes ({_listed(learned)}), and --data has {len(classes)} "
            f"({_listed(classes)}); "
            f"{' and '.join(lists) or 'they differ in their order'}: use data of the same classes."
        )


def warn_of_other_test_set(context: RunContext, folder: RunFolder, config: Mapping[str, Any]) -> None:
    """Warn if the run in `folder` split the same images into other test and training images."""
    stored = config.get("settings")
    theirs = stored.get("data") if isinstance(stored, Mapping) else None
    ours, share = context.settings.data, context.images.cache.index.test_share
    if not isinstance(theirs, Mapping) or theirs.get("uri") != ours.uri:
        return
    other_share = theirs.get("test_share") or splits.TEST_SHARE
    for flag, our, other in (("--test-share", share, other_share), ("--labels", ours.labels, theirs.get("labels"))):
        if our and other and our != other:
            events.warn(
                f"{folder.uri} was trained with {flag} {other}, and this has {our}: images that it learned may be test "
                f"images now, and the test accuracy too high. Use the {flag} of that run."
            )


def _listed(names: Sequence[str]) -> str:
    rest = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {rest} more" if rest > 0 else "")
