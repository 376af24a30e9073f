"""From defaults, file, environment and command line to one Settings, remembering where each value came from."""

import dataclasses
import difflib
import json
import os
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inat_job.errors import UsageError
from inat_job.options import Option, options_of, parse
from inat_job.recipes import RECIPES
from inat_job.settings import Settings

# Read by the tests and the measuring scripts, or set by Kubernetes for a Service called inat-job.
_OTHER_PREFIXES = ("INAT_BENCH_", "INAT_TEST_", "INAT_JOB_")
_OTHER_VARIABLES = ("INAT_CONFIG", "INAT_CHECKPOINT")  # options that are no options

PREPARE_TAKES = ("data", "storage", "run.grace_seconds")
"""The sections and single settings that have an effect on `prepare`."""

TEST_TAKES = (
    *("data", "storage", "tracker"),
    *(f"run.{field}" for field in ("output", "run_id", "grace_seconds", "lease_seconds", "price_per_hour")),
    *(f"train.{field}" for field in ("batch_size", "accelerator", "precision", "deterministic", "resident_share")),
)
"""The sections and single settings that have an effect on `test`; the run that it tests fixes the rest."""

STATUS_TAKES = ("storage", "run.output")
"""The sections and single settings that have an effect on `status`."""

_RUN = "the run"


@dataclass(frozen=True)
class Layer:
    """Values by "section.field", and the name of where they came from."""

    source: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class PlatformLayers:
    """What the place says where a command runs.

    `suggested` gives way to all but the recipe's defaults; `asked`, and `file` for `--config`, to the environment and
    the command line.
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
        """The settings that were set for this command, and not by the run that it takes up."""
        return {key for key, source in self.sources.items() if source != _RUN}

    def text(self, taken: Collection[str] | None = None) -> str:
        """A TOML file that `--config` takes, each value followed by its source; of some settings alone, see `takes`."""
        lines = []
        for section, every in self.settings.as_dict().items():
            fields = {field: value for field, value in every.items() if takes(taken, f"{section}.{field}")}
            if not fields:
                continue
            lines.append(f"[{section}]")
            for field, value in fields.items():
                comment = f"  # {self.sources.get(f'{section}.{field}', 'default')}"
                lines.append(
                    f"# {field} is not set{comment}" if value is None else f"{field} = {_toml(value)}{comment}"
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
    """The settings of a part: command line over environment over hyperparameters over file over a run's own over what
    the platform suggests over the recipe's defaults.

    `flags` holds the values given on the command line by "section.field", `sets` the texts of `--set`, `run` the
    settings in the config.json of a run to be taken up, `around` what the place says. Of a command that takes only some
    settings (see `takes`), one file serves it and the others: the rest, of either part, is passed over. Raises
    UsageError for an unknown key, a value of the wrong kind or out of range.
    """
    defaults = RECIPES[part]()
    known = options_by_key(defaults)
    accepted = known if taken is None else options_of_all_parts()
    layers = [
        Layer("file", _file_layer(file or environment.get("INAT_CONFIG") or around.file, accepted)),
        around.asked,
        Layer("environment", _environment_layer(environment, known)),
        Layer("--set", _set_layer(sets, accepted)),
        Layer("command line", {known_key(key, known, f"Part {part.upper()}"): value for key, value in flags.items()}),
    ]
    own = {key: value for key, value in _flatten(run or {}) if key in known and known[key][0].decides}
    taken_of = [_only(layer, taken) for layer in (around.suggested, *layers)]
    return _merge(defaults, known, [taken_of[0], Layer(_RUN, own), *taken_of[1:]])


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
    if file is None:
        return {}
    try:
        text = Path(file).read_text(encoding="utf-8")
        tables = json.loads(text) if file.endswith(".json") else tomllib.loads(text)
    except OSError as error:
        raise UsageError(f"--config {file} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise UsageError(f"--config {file} is neither TOML nor (named *.json) JSON: {error}.") from None
    if not isinstance(tables, dict):
        raise UsageError(f"--config {file} holds no sections: write it as --print-config does.")
    for section, fields in tables.items():
        if "." not in section and not isinstance(fields, dict):
            raise UsageError(f"--config {file}: {section!r} is no section: write its settings as --print-config does.")
    return {known_key(key, known, f"--config {file}"): value for key, value in _flatten(tables)}


def _flatten(tables: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for section, fields in tables.items():
        if isinstance(fields, Mapping):
            yield from ((f"{section}.{field}", value) for field, value in fields.items())
        else:
            yield section, fields


def _set_layer(sets: Sequence[str], known: Mapping[str, Any]) -> dict[str, Any]:
    values = {}
    for text in sets:
        key, equals, value = text.partition("=")
        if not equals:
            raise UsageError(f"--set is {text!r}: write it as section.field=value.")
        values[known_key(key, known, "--set")] = value
    return values


def _environment_layer(environment: Mapping[str, str], known: Mapping[str, tuple[Option, Any]]) -> dict[str, Any]:
    keys = {each.variable: key for key, (each, _) in known.items()}
    everywhere = {each.variable for each, _ in options_of_all_parts().values()}
    values = {}
    for variable in sorted(environment):
        if variable in keys:
            values[keys[variable]] = environment[variable]
        elif _is_ours(variable) and variable not in everywhere:
            raise UsageError(f"The environment variable {variable} sets nothing.{_nearest(variable, everywhere)}")
    return values


def _is_ours(variable: str) -> bool:
    other = variable.startswith(_OTHER_PREFIXES) or variable in _OTHER_VARIABLES
    return variable.startswith("INAT_") and not other


def known_key(key: str, known: Mapping[str, Any], where: str) -> str:
    """`key`, or UsageError with the nearest known one."""
    if key not in known:
        raise UsageError(f"{where}: there is no setting {key!r}.{_nearest(key, known)}")
    return key


def _nearest(word: str, known: Any) -> str:
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.4)
    return f" Did you mean {matches[0]}?" if matches else ""


def _toml(value: Any) -> str:
    return json.dumps(list(value) if isinstance(value, tuple) else value)
