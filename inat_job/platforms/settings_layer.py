"""The settings that a platform brings: its own suggestions, and the hyperparameters of SageMaker."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from inat_job import configuration
from inat_job.command_options import SweepOptions
from inat_job.configuration import (
    SWEEP_TAKES,
    Configuration,
    Layer,
    PlatformLayers,
    options_by_key,
    options_of_all_parts,
    takes,
)
from inat_job.errors import UsageError
from inat_job.options import Option, options_of, parse
from inat_job.platforms.platform import Platform
from inat_job.platforms.sagemaker import training_job
from inat_job.recipes import RECIPES

_PART, _COMMAND, _CONFIG = "part", "command", "config"
"""Hyperparameters that are not settings."""

_SWEEP = "sweep"

Known = Mapping[str, tuple[Option, Any]]


def part_of(platform: Platform) -> str:
    """The part that the hyperparameter `part` names. Raises UsageError if there is none."""
    parts = " or ".join(RECIPES)
    if platform.name != training_job.NAME:
        raise UsageError(
            "train is for SageMaker only, and /opt/ml/input/config does not exist: use parta or partb, or set "
            "SAGEMAKER_BASE_DIR."
        )
    if _PART not in platform.hyperparameters:
        raise UsageError(f"The hyperparameter part is missing: set it to {parts}.")
    part = platform.hyperparameters[_PART]
    if part not in list(RECIPES):  # which takes values of any kind
        raise UsageError(f"The hyperparameter part is {part!r}: it must be {parts}.")
    return str(part)


def sweep_of(platform: Platform) -> dict[str, Any] | None:
    """The options of `sweep` among the hyperparameters, by field; None if these do not ask for a sweep.

    Raises UsageError for a hyperparameter `command` of another value.
    """
    command = platform.hyperparameters.get(_COMMAND)
    if command not in (None, _SWEEP):
        raise UsageError(f"The hyperparameter command is {command!r}: set it to {_SWEEP}, or leave it out.")
    fields = {each.name: field for field, (each, _) in options_of(SweepOptions).items()} if command else {}
    named = {spelled.replace("_", "-"): value for spelled, value in platform.hyperparameters.items()}
    return {field: named[name] for name, field in fields.items() if name in named} if command else None


def part_or(asked: str | None, platform: Platform) -> str:
    """The part that `--part` names, or that the platform does, or the first."""
    return asked or (part_of(platform) if platform.hyperparameters else next(iter(RECIPES)))


def around(platform: Platform, part: str, taken: Collection[str] | None = None) -> PlatformLayers:
    """What configure() takes from a platform, for a command of this part that takes all settings or some (see there).

    Raises UsageError for a hyperparameter that is not an option, or that belongs to the other part.
    """
    options = options_of_all_parts()
    if taken in (None, SWEEP_TAKES):
        options = {key: entry for key, entry in options_by_key(RECIPES[part]()).items() if takes(taken, key)}
    if taken is None and platform.hyperparameters.get(_PART, part) != part:
        raise UsageError(
            f"The hyperparameter part is {platform.hyperparameters[_PART]!r} and the command is for Part "
            f"{part.upper()}: leave it out."
        )
    suggested = platform.settings()
    if taken is not None:
        suggested.pop("run.run_id", None)  # a test is not the run that it tests
    of_sweep = (options_of(SweepOptions)[field][0].name for field in sweep_of(platform) or ())
    others = {_PART, _COMMAND, _CONFIG, *of_sweep}
    asked = {name: value for name, value in platform.hyperparameters.items() if name.replace("_", "-") not in others}
    values = keyed(asked, options, f"The hyperparameters of Part {part.upper()}")
    file = platform.hyperparameters.get(_CONFIG)
    return PlatformLayers(
        Layer(platform.name, suggested), Layer("hyperparameters", values), None if file is None else str(file)
    )


def configured(
    platform: Platform,
    part: str,
    flags: Mapping[str, Any],
    sets: Sequence[str],
    file: str | None,
    taken: Collection[str] | None = None,
) -> Configuration:
    """configure() with the platform's settings. Raises UsageError, also if its channels leave --data unclear."""
    made = configuration.configure(part, flags, sets, file, taken=taken, around=around(platform, part, taken))
    if platform.data_problem and "data.uri" not in made.sources:
        raise UsageError(platform.data_problem)
    return made


def keyed(asked: Mapping[str, Any], options: Known, where: str) -> dict[str, Any]:
    """Values by "section.field", given those by the options' names, with dashes or underscores.

    Raises UsageError for an unknown name, and for one that is given twice; `where` says where they are from.
    """
    names = {each.name: (key, each) for key, (each, _) in options.items()}
    switches = {f"no-{each.name}" for each, kind in options.values() if kind is bool}
    values: dict[str, Any] = {}
    for spelled, value in asked.items():
        name = spelled.replace("_", "-")
        off = name in switches
        key, each = names[configuration.known_key(name.removeprefix("no-") if off else name, names, where)]
        if key in values:
            raise UsageError(f"{where} set {each.flag} twice, the second time as {spelled!r}: leave one out.")
        values[key] = not parse(each, bool, value) if off else value
    return values
