"""What the log says before training: what is trained on what, and from where a run is resumed."""

from inat_job import events
from inat_job.checkpoints.manifest import Manifest, planned_epochs
from inat_job.configuration import AUGMENTING, options_by_key
from inat_job.models.strategies import Architecture, parameter_groups
from inat_job.options import as_text
from inat_job.recipes import PRESETS
from inat_job.settings import Settings
from inat_job.training.context import RunContext


def warn_of_unused_augmentation(settings: Settings) -> None:
    """Warn of options of augmentation that were given together with --no-augment, as an agent of wandb may do."""
    if settings.train.augment:
        return
    known, values = options_by_key(settings), settings.by_key()
    usual = PRESETS[settings.part][settings.run.preset]().by_key()
    for key in AUGMENTING:
        if values[key] not in (usual[key], *known[key][0].off):
            events.warn(f"{known[key][0].flag} is {as_text(values[key])}, and does nothing without augmentation.")


def introduce(context: RunContext, architecture: Architecture, resumed: Manifest | None) -> None:
    """Log network, data, device and run, and the checkpoint that training continues from."""
    images, settings = context.images, context.settings
    groups = parameter_groups(architecture, lr=1.0, weight_decay=0.0)
    splits = {"train": images.train_rows, "validation": images.val_rows, "test": images.test_rows}
    events.emit(
        "introduction",
        model=architecture.name,
        parameters=sum(each.numel() for each in architecture.network.parameters()),
        trainable_parameters=sum(each.numel() for group in groups for each in group["params"]),
        strategy=getattr(settings.model, "strategy", None),
        images={name: len(rows) for name, rows in splits.items()},
        classes=len(images.cache.index.classes),
        device=context.execution.device,
        precision=context.execution.precision,
        ranks=context.group.size,
        run=context.folder.uri,
    )
    if settings.train.final:
        events.emit(
            "final",
            message="All images of train are trained on (--final): nothing is validated, the last epoch's weights are "
            "the result, and their confidences are not calibrated.",
        )
    if resumed:
        epochs = planned_epochs(resumed, context.train.epochs, images.steps_per_epoch)
        epoch = min(resumed.epoch + (not resumed.ended), epochs)
        events.emit("resume", step=resumed.step, epoch=epoch, epochs=epochs, ended=resumed.ended)
        if context.execution.accelerator == "cuda" and not (context.execution.deterministic or resumed.ended):
            events.warn("This resume is not bit-equal to an uninterrupted run: on a GPU that takes --deterministic.")
