"""What `--checkpoint` asks to test: a run's best checkpoint, one of its checkpoints, or an exported model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from inat_job.data.layout import VALIDATION
from inat_job.errors import BadDataError, ConflictError, UsageError, last_line
from inat_job.evaluation.calibration import fit_temperature
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.models import backbones, five_block
from inat_job.models.classifier import Classifier
from inat_job.models.export import load_exported
from inat_job.models.model_files import DESCRIPTION, EXPORTS, WEIGHTS, check_description, temperature_in
from inat_job.options import parse_section, public_uri
from inat_job.run.run_state import CONFIG, REPORT, open_run, read_config
from inat_job.run.sweep_folder import refuse_sweep
from inat_job.settings import BackboneSettings, FiveBlockSettings, Settings
from inat_job.signals import Stop
from inat_job.storage import attempts
from inat_job.storage.run_folder import RunFolder, run_uri
from inat_job.training.context import RunContext, load_weights, warn_of_other_test_set
from inat_job.training.results import Weights, checkpoint_weights

MODEL = "model"
_FIVE_BLOCK = ("filters", "kernel_sizes", "activation", "dense", "pooling", "batch_norm", "dropout")


@dataclass(frozen=True)
class TrainedModel:
    """A run with its config.json, and the step of the checkpoint to test, if not the best; or an exported model.

    `folder` is the run's, or that of the model, whose model.json is then `description`. `has_run` is whether config is
    a run's, and not made of model.json alone.
    """

    folder: RunFolder
    config: Mapping[str, Any]
    step: int | None = None
    description: Mapping[str, Any] | None = None
    has_run: bool = True

    @property
    def name(self) -> str:
        """The id of the run, or the name of a model's folder in the characters of a run id."""
        uri = self.folder.uri.removesuffix(f"/{MODEL}") if self.description and self.has_run else self.folder.uri
        return re.sub(r"[^A-Za-z0-9._-]", "-", uri.rpartition("/")[2])

    @property
    def detail(self) -> str:
        """What distinguishes it from other checkpoints of its run."""
        return MODEL if self.description else "best" if self.step is None else str(self.step)


def find_trained(settings: Settings, checkpoint: str, stop: Stop) -> TrainedModel:
    """What `--checkpoint` means. Raises BadDataError if there is neither a run nor a model."""
    name, step = _locate(_model_folder(checkpoint))
    name = run_uri(name, settings.run.output, CONFIG, DESCRIPTION)
    folder = open_run(settings, name, stop)
    if step is None and (description := folder.read_json(DESCRIPTION)) is not None:
        check_description(description, f"{folder.uri}/{DESCRIPTION}")
        config, classes = _config_of_model(description, folder), {"classes": description["classes"]}
        parent, slash, last = name.rstrip("/").rpartition("/")
        run = read_config(open_run(settings, parent, stop)) if slash and last == MODEL else None
        return TrainedModel(folder, (run or config) | classes, None, description, run is not None)
    stored = read_config(folder)
    if stored is None:
        refuse_sweep(folder.store)
        raise BadDataError(f"{folder.uri} holds no run and no model: check --checkpoint.")
    if stored.get("command") == "test":
        raise BadDataError(f"{folder.uri} is the folder of a test{_tested_in(folder)}: name that run.")
    return TrainedModel(folder, stored, step)


def load_trained(context: RunContext, classifier: Classifier, trained: TrainedModel) -> tuple[Weights, bool]:
    """Load the weights, and tell whether they have not seen the validation images of these data, as far as is known."""
    warn_of_other_test_set(context, trained.folder, trained.config)
    if trained.description:
        return _load_exported(classifier, trained), False
    checkpoints = context.checkpoints
    checkpoints.discover()  # as late as this, since a run that is still training takes new ones and deletes old ones
    manifest, path = checkpoints.best() if trained.step is None else checkpoints.at_step(trained.step)
    load_weights(classifier, path)
    weights = checkpoint_weights(context, manifest, attempts.history(trained.folder.store))
    return weights, manifest.split_digest == context.images.split_digest


def temperature_of(trained: TrainedModel, table: PredictionTable) -> float:
    """The temperature fitted on the validation images, or where there are none, that of the exported model.

    Raises BadDataError.
    """
    if VALIDATION in table.splits:
        return fit_temperature(table.split(VALIDATION))
    description, file = trained.description, DESCRIPTION
    if description is None and trained.step is None:
        file = f"{MODEL}/{DESCRIPTION}"
        description = trained.folder.read_json(file)
    return temperature_in(description if isinstance(description, dict) else {}, f"{trained.folder.uri}/{file}")


def _tested_in(folder: RunFolder) -> str:
    report = folder.read_json(REPORT)
    checkpoint = report.get("checkpoint") if isinstance(report, dict) else None
    return f" of {checkpoint['uri']}" if isinstance(checkpoint, dict) and "uri" in checkpoint else ""


def _model_folder(checkpoint: str) -> str:
    """The folder of an exported model where its weights are named. Raises UsageError for another of its files."""
    folder, _, file = checkpoint.rpartition("/")
    if file in EXPORTS.values():
        raise UsageError(
            f"--checkpoint is {public_uri(checkpoint)}, and test runs the network in torch: name its folder, "
            f"{public_uri(folder) or '.'}. Its run's report has the accuracy of {file}."
        )
    return (folder or ".") if file in (WEIGHTS, DESCRIPTION) else checkpoint


def _locate(checkpoint: str) -> tuple[str, int | None]:
    """The folder that `--checkpoint` means, and the step of the one checkpoint in it, if it names one."""
    run, slash, file = checkpoint.rstrip("/").rpartition("/checkpoints/")
    if not slash:
        return checkpoint, None
    step = file.removesuffix(".ckpt")
    if not step.isdigit():
        raise BadDataError(f"--checkpoint is {public_uri(checkpoint)}: name a run folder, or one <step>.ckpt in it.")
    return run, int(step)


def _load_exported(classifier: Classifier, trained: TrainedModel) -> Weights:
    folder = trained.folder
    path = folder.fetch(DESCRIPTION)
    if path is None or folder.fetch(WEIGHTS) is None:
        raise BadDataError(f"{folder.uri} holds no {WEIGHTS}: export the model again.")
    network, description = load_exported(path.parent)
    try:
        classifier.network.load_state_dict(network.state_dict())
    except RuntimeError as error:
        raise ConflictError(f"{folder.uri} holds the weights of another network: {last_line(error)}") from None
    uri, sha256 = f"{folder.uri}/{WEIGHTS}", description["weights"]["sha256"]
    return Weights({"uri": uri, "sha256": sha256, "epoch": None, "step": None})


def _config_of_model(description: Any, folder: RunFolder) -> dict[str, Any]:
    """What a run's config.json would hold, as far as a model.json has it. Raises BadDataError."""
    try:
        blueprint, preprocessing, classes = (description[name] for name in ("architecture", "preprocessing", "classes"))
        if blueprint["kind"] == five_block.KIND:
            part, model = "a", {name: blueprint[name] for name in _FIVE_BLOCK}
        elif blueprint["kind"] in backbones.KINDS:
            part, model = "b", {"backbone": blueprint["name"]}
        else:
            raise ValueError(blueprint["kind"])
        parse_section(FiveBlockSettings if part == "a" else BackboneSettings, model)
        data = {name: preprocessing[name] for name in ("image_size", "eval_crop")}
    except (LookupError, TypeError, ValueError, UsageError) as error:
        raise BadDataError(f"{folder.uri}/{DESCRIPTION} describes no model ({error!r}): export it again.") from None
    return {"part": part, "settings": {"model": model, "data": data}, "execution": {}, "classes": classes}
