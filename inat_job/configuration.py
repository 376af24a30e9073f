"""From defaults, file, environment and command line to one Settings, remembering where each value came from."""

import dataclasses
import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inat_job.errors import UsageError
from inat_job.knobs import Knob, knobs_of, parse
from inat_job.recipes import RECIPES
from inat_job.settings import Settings

# Variables that are read by the tests and the measuring scripts, not by the job.
_OTHER_VARIABLES = ("INAT_BENCH_", "INAT_TEST_", "INAT_CONFIG")


@dataclass(frozen=True)
class Layer:
    """Values by "section.field", and the name of where they came from."""

    source: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Configuration:
    """Settings, and by "section.field" the source of each value."""

    settings: Settings
    sources: Mapping[str, str]

    def text(self) -> str:
        """A TOML file that `--config` takes, each value followed by its source."""
        lines = []
        for section, fields in self.settings.as_dict().items():
            lines.append(f"[{section}]")
            for field, value in fields.items():
                comment = f"  # {self.sources.get(f'{section}.{field}', 'default')}"
                lines.append(
                    f"# {field} is not set{comment}" if value is None else f"{field} = {_toml(value)}{comment}"
                )
            lines.append("")
        return "\n".join(lines)


def all_knobs(settings: Settings) -> dict[str, tuple[Knob, Any]]:
    """Knob and type by "section.field"."""
    return {
        f"{name}.{field}": entry
        for name, section in settings.sections().items()
        for field, entry in knobs_of(type(section)).items()
    }


def configure(
    part: str, flags: Mapping[str, Any], sets: Sequence[str], file: str | None, run: Mapping[str, Any] | None = None
) -> Configuration:
    """The settings of a part: command line over environment over file over a run's own over the recipe's defaults.

    `flags` holds the values given on the command line by "section.field", `sets` the texts of `--set`, `run` the
    settings in the config.json of a run to be taken up. Raises UsageError for an unknown key, a value of the wrong
    kind or out of range.
    """
    defaults = RECIPES[part]()
    known = all_knobs(defaults)
    layers = [
        Layer("the run", {key: value for key, value in _flatten(run or {}) if key in known and known[key][0].decides}),
        Layer("file", _file_layer(file or os.environ.get("INAT_CONFIG"), known)),
        Layer("environment", _environment_layer(os.environ, known)),
        Layer("--set", _set_layer(sets, known)),
        Layer("command line", flags),
    ]
    return _merge(defaults, known, layers)


def _merge(defaults: Settings, known: Mapping[str, tuple[Knob, Any]], layers: Sequence[Layer]) -> Configuration:
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


def _environment_layer(environment: Mapping[str, str], known: Mapping[str, tuple[Knob, Any]]) -> dict[str, Any]:
    keys = {each.variable: key for key, (each, _) in known.items()}
    everywhere = {each.variable for recipe in RECIPES.values() for each, _ in all_knobs(recipe()).values()}
    values = {}
    for variable in sorted(environment):
        if not variable.startswith("INAT_") or variable.startswith(_OTHER_VARIABLES):
            continue
        if variable in keys:
            values[keys[variable]] = environment[variable]
        elif variable not in everywhere:
            raise UsageError(f"The environment variable {variable} sets nothing.{_nearest(variable, everywhere)}")
    return values


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
