"""From defaults, file, environment and command line to one Settings, with the source of each value."""

import dataclasses
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inat_job import config_file, near_misses, timm_networks
from inat_job.command_options import LogOptions
from inat_job.config_file import flatten
from inat_job.errors import BadDataError, UsageError
from inat_job.job_settings import TrackerSettings
from inat_job.options import Option, as_text, as_toml, check_value, options_of, parse, parse_section
from inat_job.recipes import PRESETS, RECIPES
from inat_job.settings import Settings, TrainSettings
from inat_job.torchvision_weights import eval_crop

# Read by the tests and the measuring scripts, or between processes of one job, or set for a Service called inat-job.
_OTHER_PREFIXES = ("INAT_BENCH_", "INAT_TEST_", "INAT_JOB_")
_OTHER_VARIABLES = ("INAT_CONFIG", "INAT_CHECKPOINT", "INAT_MODEL")  # options that are not settings
_OF_A_SERVICE = re.compile(r"INAT_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?)")
"""What Kubernetes sets for a Service whose name begins with inat:
https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables"""

PREPARE_TAKES = (
    *("data.uri", "data.labels", "data.test_share"),
    *("data.cache_dir", "data.image_size", "data.test_size", "data.max_broken"),
    *("storage.requester_pays", "storage.anonymous", "run.grace_seconds"),
)
"""The sections and single settings that have an effect on `prepare`."""

TEST_TAKES = (
    *("data", "storage"),
    *(f"tracker.{field.name}" for field in dataclasses.fields(TrackerSettings) if field.name != "artifacts"),
    *(f"run.{field}" for field in ("output", "run_id", "grace_seconds", "lease_seconds", "price_per_hour", "pictures")),
    *(f"train.{field}" for field in ("batch_size", "accelerator", "precision", "deterministic", "resident_share")),
)
"""The sections and single settings that have an effect on `test`; the run that it tests fixes the rest."""

PREDICT_TAKES = (
    *("data.cache_dir", "storage.requester_pays", "storage.anonymous", "run.output", "run.grace_seconds"),
    *("train.batch_size", "train.accelerator"),
)
"""The sections and single settings that have an effect on `predict`."""

STATUS_TAKES = ("storage.requester_pays", "storage.anonymous", "run.output")
"""The sections and single settings that have an effect on `status`."""

PRUNE_TAKES = STATUS_TAKES
"""The sections and single settings that have an effect on `prune`."""

COMPARE_TAKES = STATUS_TAKES
"""The sections and single settings that have an effect on `compare`."""

PREFLIGHT_LACKS = ("run.preflight",)
"""The settings without an effect on `preflight`, which has all others."""

_NOT_OF_TRIALS = (
    *("min_images_seen", "max_time", "final"),
    *("devices", "num_nodes", "rendezvous_minutes", "sync_batch_norm"),
)
_RECIPE = tuple(
    f"train.{field.name}" for field in dataclasses.fields(TrainSettings) if field.name not in _NOT_OF_TRIALS
)

_BENCH_LACKS_OF_TRAIN = (
    *("min_images_seen", "max_time", "early_stop", "final"),
    *("devices", "num_nodes", "rendezvous_minutes", "sync_batch_norm"),
)
BENCH_LACKS = (
    *(
        f"run.{field}"
        for field in ("run_id", "resume", "preflight", "force", "init_from", "export", "price_per_hour", "pictures")
    ),
    *(f"train.{field}" for field in _BENCH_LACKS_OF_TRAIN),
    "tracker",
)
"""The sections and single settings without an effect on `bench`, which has all others."""

SWEEP_TAKES = (
    *("data", "model", "storage", "tracker"),
    *(f"run.{field}" for field in ("output", "run_id", "checkpoint_minutes", "grace_seconds", "lease_seconds")),
    *("run.price_per_hour", "run.preset", *_RECIPE),
)
"""The sections and single settings that have an effect on `sweep`: a trial is a run on one device, without a test."""

_RUN = "the run"
_PRESET, _OF_PRESET = "run.preset", "preset "

_AUGMENT = "train.augment"
AUGMENTING = tuple(
    f"train.{name}"
    for name in ("crop_scale", "rotation", "colour", "flip", "trivial_augment", "erase", "mixup", "cutmix", "mix_until")
)
"""Settings that have no effect without augmentation."""


@dataclass(frozen=True)
class Layer:
    """Values by "section.field", and the name of where they came from."""

    source: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class PlatformLayers:
    """The settings that a platform brings.

    Everything but the recipe's defaults overrides `suggested`; the environment and the command line override `asked`,
    and `file` is read if there is no `--config`.
    """

    suggested: Layer = Layer("platform", {})
    asked: Layer = Layer("hyperparameters", {})
    file: str | None = None


@dataclass(frozen=True)
class Configuration:
    """Settings, and by "section.field" the source of each value."""

    settings: Settings
    sources: Mapping[str, str]

    @property
    def given(self) -> set[str]:
        """The settings that were set for this command, not by a preset or the run that it takes them from."""
        return {key for key, source in self.sources.items() if source != _RUN and not source.startswith(_OF_PRESET)}

    def text(self, taken: Collection[str] | None = None) -> str:
        """A TOML file for `--config`, each value followed by its source; `taken` limits it to some settings."""
        lines = []
        for section, every in self.settings.as_dict().items():
            fields = {field: value for field, value in every.items() if takes(taken, f"{section}.{field}")}
            if not fields:
                continue
            lines.append(f"[{section}]")
            for field, value in fields.items():
                comment = f"  # {self.sources.get(f'{section}.{field}', 'default')}"
                lines.append(
                    f"# {field} is not set{comment}" if value is None else f"{field} = {as_toml(value)}{comment}"
                )
            lines.append("")
        return "\n".join(lines)


def options_by_key(settings: Settings) -> dict[str, tuple[Option, Any]]:
    """Option and type by "section.field"."""
    return {
        f"{name}.{field}": entry
        for name, section in settings.sections().items()
        for field, entry in options_of(type(section)).items()
    }


def takes(names: Collection[str] | None, key: str) -> bool:
    """Whether a command takes the setting `key`: `names` are its sections and single settings, None is all."""
    return names is None or key in names or key.partition(".")[0] in names


def configure(
    part: str,
    flags: Mapping[str, Any],
    sets: Sequence[str],
    file: str | None,
    run: Mapping[str, Any] | None = None,
    taken: Collection[str] | None = None,
    around: PlatformLayers = PlatformLayers(),
    environment: Mapping[str, str] = os.environ,
) -> Configuration:
    """The settings of a part. Each layer overrides the next: command line, environment, hyperparameters, file, the
    run's own settings, the platform's suggestions, the preset, the recipe's defaults.

    `flags` holds the values given on the command line by "section.field", `sets` the texts of `--set`, `run` the
    settings in the config.json of a run that the command takes them from, `around` the platform's. `taken` limits a
    command to some settings (see `takes`): it ignores the others in a file, of either part, so that one file serves
    every command. Raises UsageError for an unknown key, for one of `sets` that is not taken, and for a value of the
    wrong kind or out of range.
    """
    defaults = RECIPES[part]()
    known = options_by_key(defaults)
    accepted = known if taken is None else options_of_all_parts()
    layers = [
        Layer("file", _file_layer(file or environment.get("INAT_CONFIG") or around.file, accepted)),
        around.asked,
        Layer("environment", _environment_layer(environment, known)),
        Layer("--set", _set_layer(sets, accepted, taken)),
        Layer("command line", {known_key(key, known, f"Part {part.upper()}"): value for key, value in flags.items()}),
    ]
    own = _settings_of_run(run or {}, defaults, known)
    taken_of = [_only(layer, taken) for layer in (around.suggested, *layers)]
    preset = _preset_layer(part, known, taken_of)
    ordered = [preset, taken_of[0], Layer(_RUN, own), *taken_of[1:]]
    merged = _merge(defaults, known, ordered)
    _refuse_unused_secret(merged)
    _refuse_unused_augmentation(merged, ordered)
    return _with_crop_of_weights(_with_length(merged, ordered, is_sweep=taken == SWEEP_TAKES))


def _refuse_unused_secret(merged: Configuration) -> None:
    """Raise UsageError for a secret that is given where the tracker is turned off; elsewhere it may have been set for
    other runs.
    """
    tracker, sources = merged.settings.tracker, merged.sources
    is_unused = tracker.key_name is not None and tracker.mode in ("off", "offline")
    if is_unused and sources.get("tracker.key_name") == sources.get("tracker.mode"):
        raise UsageError(f"--wandb-secret is given and --wandb is {tracker.mode!r}, which needs no key: leave one out.")


def _strength(layers: Sequence[Layer]) -> dict[str, int]:
    """The strongest of the layers that sets a value, by its key: each layer overrides those before it."""
    return {key: at for at, layer in enumerate(layers) for key in layer.values}


def _refuse_unused_augmentation(merged: Configuration, layers: Sequence[Layer]) -> None:
    """Raise UsageError for an augmentation that a stronger of the `layers` gives than the one that turns all off."""
    strength = _strength(layers)
    off = strength.get(_AUGMENT, -1)
    if merged.settings.train.augment or off < 0:
        return
    known, values = options_by_key(merged.settings), merged.settings.by_key()
    for key in AUGMENTING:
        if strength.get(key, -1) > off and values[key] not in known[key][0].off:
            raise UsageError(
                f"{known[key][0].flag} is {as_text(values[key])}, and does nothing without augmentation, which is off "
                f"({merged.sources[_AUGMENT]}): add --augment, or leave it out."
            )


def _with_length(merged: Configuration, layers: Sequence[Layer], is_sweep: bool) -> Configuration:
    """Set `--min-images-seen` to 0 in a sweep, and where a stronger layer sets `--epochs`, which is the length then."""
    epochs, least = "train.epochs", "train.min_images_seen"
    strength = _strength(layers)
    if strength.get(epochs, -1) <= strength.get(least, -1) and not is_sweep:
        return merged
    train = dataclasses.replace(merged.settings.train, min_images_seen=0)
    sources = {**merged.sources, least: merged.sources[epochs]} if epochs in merged.sources else merged.sources
    return Configuration(dataclasses.replace(merged.settings, train=train), sources)


def crop_of_weights(model: Mapping[str, Any]) -> float | None:
    """The crop that the pretrained weights of the section `model` were tested with; None for Part A's, which has none.

    Raises UsageError for an unknown network of timm, ConflictError without timm.
    """
    if "backbone" not in model:
        return None
    if timm_networks.is_timm(model["backbone"]):
        return timm_networks.eval_crop(model["backbone"])
    return eval_crop(model["backbone"], model["weights"])


def _with_crop_of_weights(merged: Configuration) -> Configuration:
    """With the crop that the pretrained weights were tested with, unless another is set."""
    crop = crop_of_weights(merged.settings.as_dict()["model"])
    if crop is None or "data.eval_crop" in merged.sources:
        return merged
    data = dataclasses.replace(merged.settings.data, eval_crop=crop)
    return Configuration(dataclasses.replace(merged.settings, data=data), merged.sources)


def _preset_layer(part: str, known: Mapping[str, tuple[Option, Any]], layers: Sequence[Layer]) -> Layer:
    """The values of the preset that the last of the layers names, as far as they are not the defaults."""
    named = [layer.values[_PRESET] for layer in layers if _PRESET in layer.values]
    if not named:
        return Layer(_OF_PRESET, {})
    name = parse(*known[_PRESET], named[-1])
    check_value(known[_PRESET][0], name)
    own, defaults = (flatten(each().as_dict()) for each in (PRESETS[part][name], RECIPES[part]))
    changes = {key: value for (key, value), default in zip(own, defaults, strict=True) if (key, value) != default}
    return Layer(
        f"{_OF_PRESET}{name}",
        {key: list(value) if isinstance(value, tuple) else value for key, value in changes.items()},
    )


def _settings_of_run(run: Mapping[str, Any], defaults: Settings, known: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a run's config.json that make it what it is. Raises BadDataError."""
    own = {
        key: value
        for key, value in flatten(run)
        if value is not None
        and key in known
        and known[key][0].in_fingerprint  # null is the default, or was in older runs
    }
    if run:  # one of an earlier version lacks the options that came later
        own = {key: each.off[0] for key, (each, _) in known.items() if each.off} | own
    try:
        _merge(defaults, known, [Layer(_RUN, own)])
    except UsageError as error:
        raise BadDataError(f"The stored settings of the run or model cannot be used: {error}") from None
    return own


def changed(settings: Settings, values: Mapping[str, Any], source: str) -> Settings:
    """Settings with other values by "section.field", as typed in a file: with other weights also in their crop, unless
    the settings have another one than that of their own weights. Raises UsageError.
    """
    merged = _merge(settings, options_by_key(settings), [Layer(source, values)])
    has_own = settings.data.eval_crop != crop_of_weights(settings.as_dict()["model"])
    return merged.settings if has_own else _with_crop_of_weights(merged).settings


def options_of_all_parts() -> dict[str, tuple[Option, Any]]:
    """The options of all parts."""
    return {key: entry for recipe in RECIPES.values() for key, entry in options_by_key(recipe()).items()}


def _only(layer: Layer, taken: Collection[str] | None) -> Layer:
    return Layer(layer.source, {key: value for key, value in layer.values.items() if takes(taken, key)})


def _merge(defaults: Settings, known: Mapping[str, tuple[Option, Any]], layers: Sequence[Layer]) -> Configuration:
    values: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for layer in layers:
        for key, value in layer.values.items():
            values[key] = parse(*known[key], value)
            sources[key] = layer.source
    sections = {}
    for name, section in defaults.sections().items():
        changes = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{name}.")}
        sections[name] = dataclasses.replace(section, **changes)
    return Configuration(dataclasses.replace(defaults, **sections), sources)


def _file_layer(file: str | None, known: Mapping[str, Any]) -> dict[str, Any]:
    values = {} if file is None else config_file.read(file)
    return {known_key(key, known, f"--config {file}"): value for key, value in values.items()}


def _set_layer(sets: Sequence[str], known: Mapping[str, Any], taken: Collection[str] | None) -> dict[str, Any]:
    values = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set is {text!r}: write it as section.field=value.")
        values[known_key(key, known, "--set")] = value
        if not takes(taken, key):
            raise UsageError(f"--set {key} does nothing with this command: leave it out.")
    return values


def _environment_layer(environment: Mapping[str, str], known: Mapping[str, tuple[Option, Any]]) -> dict[str, Any]:
    keys = {each.variable: key for key, (each, _) in known.items()}
    return {keys[variable]: environment[variable] for variable in sorted(keys.keys() & environment.keys())}


def log_options(given: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> LogOptions:
    """How a command logs: by the given values, else by the environment. Raises UsageError."""
    known = options_of(LogOptions)
    given = {field: value for field, value in given.items() if field in known and value is not None}
    if given.get("quiet") or given.get("verbose"):
        given = {"quiet": False, "verbose": False, **given}  # the command line overrides the other one's variable
    layers = {field: environment[each.variable] for field, (each, _) in known.items() if each.variable in environment}
    return parse_section(LogOptions, {**layers, **given})


def unused_variables(environment: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each INAT_* variable that sets nothing, and one for all that Kubernetes sets for a Service."""
    everywhere = [each for each, _ in (*options_of_all_parts().values(), *options_of(LogOptions).values())]
    variables = {each.name: each.variable for each in everywhere}
    unused = [name for name in sorted(environment) if _is_ours(name) and name not in variables.values()]
    of_services = [name for name in unused if _OF_A_SERVICE.fullmatch(name)]
    sentences = [
        f"The environment variable {name} sets nothing{_ending(name.removeprefix('INAT_'), variables)}"
        for name in unused
        if name not in of_services
    ]
    if of_services:
        more = f" and {len(of_services) - 1} more set" if len(of_services) > 1 else " sets"
        sentences.append(f"{of_services[0]}{more} nothing: Kubernetes adds them for a Service.")
    return sentences


def _is_ours(variable: str) -> bool:
    other = variable.startswith(_OTHER_PREFIXES) or variable in _OTHER_VARIABLES
    return variable.startswith("INAT_") and not other


def known_key(key: str, known: Collection[str], where: str) -> str:
    """`key`, or UsageError with the known one that it most likely means."""
    if key not in known:
        names = {_field(each): each for each in known}
        raise UsageError(f"{where}: there is no setting {key!r}{_ending(_field(key), names)}")
    return key


def _field(key: str) -> str:
    return key.rpartition(".")[2].replace("_", "-")


def _ending(word: str, known: Mapping[str, str]) -> str:
    return near_misses.ending(near_misses.option(word, known))
