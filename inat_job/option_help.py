"""What `--help` says of each option: its type, meaning, default and range, with the meaning it has for the command.

Plain text only, for the command line and for the page of all options alike.
"""

import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Any

from inat_job.configuration import options_by_key
from inat_job.options import Option, options_of, range_of
from inat_job.platforms.submission import TARGETS
from inat_job.recipes import RECIPES

TITLES = {
    "data": "Data",
    "model": "Model",
    "train": "Training",
    "run": "Run",
    "storage": "Storage",
    "tracker": "Tracking",
}
"""The sections of the settings in the order of the groups, and the groups' titles."""

_OF_THE_RUN = "the run's"
_MEANINGS: Mapping[str, Mapping[str, str]] = {
    "test": {
        "data.uri": "Data set whose test split is evaluated: an archive, a folder, a prefix, or demo:",
        "run.output": "Local folder or prefix in a bucket that the test's own run folder goes to",
        "run.run_id": "Name of the test's own run folder",
        "train.batch_size": "Images per forward pass",
        "train.precision": "Arithmetic of the evaluation; auto is fp32",
    },
    "status": {"run.output": "Local folder or prefix in a bucket that holds RUN, if RUN is a run id"},
    "compare": {"run.output": "Local folder or prefix in a bucket that holds the RUNs named by their run ids"},
    "predict": {
        "run.output": "Local folder or prefix in a bucket that holds the run, if --model is a run id",
        "data.cache_dir": "Folder for downloads",
        "train.batch_size": "Images per forward pass",
    },
    "prepare": {"data.image_size": "Side in pixels of the largest input that later runs train with"},
    "bench": {
        "run.output": "Local folder or prefix in a bucket that checkpoints are written to, and deleted from afterwards",
        "train.epochs": "Epochs of the run whose time is divided among the stages",
    },
}
"""The meaning of a setting for a command, where it differs from that for a run."""

_DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "test": {"run.run_id": "test- and the run's id", "train.precision": "auto"}
}


@dataclass(frozen=True)
class OptionHelp:
    """`metavar` is empty for a switch; `facts` are default and range, empty where there is nothing to say."""

    metavar: str
    meaning: str
    facts: str


def of_settings(command: str, parts: Sequence[str]) -> dict[str, OptionHelp]:
    """The help of every setting by "section.field", for a command that may be given the settings of these parts."""
    known = {part: options_by_key(RECIPES[part]()) for part in parts}
    defaults = {part: RECIPES[part]().sections() for part in parts}
    found = {}
    for key in {key: None for options in known.values() for key in options}:
        section, _, field = key.partition(".")
        each, kind = next(options[key] for options in known.values() if key in options)
        having = [part for part in parts if key in known[part]]
        values = {part: shown_default(each, getattr(defaults[part][section], field)) for part in having}
        default = _DEFAULTS.get(command, {}).get(key) or _joined(values, command == "test" and each.in_fingerprint)
        meaning = _MEANINGS.get(command, {}).get(key, each.help)
        found[key] = OptionHelp(metavar(each, kind), meaning, _facts(default, each))
    return found


def of_section(section: type) -> dict[str, OptionHelp]:
    """The help of the options of one command that are not settings, by field."""
    found = {}
    for field, (each, kind) in options_of(section).items():
        default = "" if kind is bool else shown_default(each, getattr(section, field))
        found[field] = OptionHelp(metavar(each, kind), each.help, _facts(default, each))
    return found


def metavar(each: Option, kind: Any) -> str:
    """The type of a value: FLOAT, INTEGER, DURATION, URI, LIST, TEXT, or the choices; empty for a switch."""
    if isinstance(kind, UnionType):
        kind = next(arm for arm in kind.__args__ if arm is not type(None))
    if kind is bool:
        return ""
    if each.metavar:
        return each.metavar
    if typing.get_origin(kind) is tuple:
        return "LIST"
    if each.choices:
        return "|".join(each.choices)
    if each.duration or each.uri:
        return "DURATION" if each.duration else "URI"
    return {int: "INTEGER", float: "FLOAT"}.get(kind, "TEXT")


def shown_default(each: Option, value: Any) -> str:
    """A default for people; empty where there is none."""
    if each.shown_default:
        return each.shown_default
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def group_of(key: str, command: str, parts: Sequence[str]) -> str:
    """The title of the group that a setting is listed in; each of several parts has a model of its own."""
    section = key.partition(".")[0]
    if section == "train" and command in ("test", "predict"):
        return "Evaluation" if command == "test" else "Prediction"
    if section != "model" or len(parts) == 1:
        return TITLES[section]
    [part] = [part for part in parts if key in options_by_key(RECIPES[part]())]
    return f"{TITLES[section]} of Part {part.upper()}"


def _joined(values: Mapping[str, str], of_the_run: bool) -> str:
    if of_the_run:
        return _OF_THE_RUN
    if len(set(values.values())) == 1:
        return next(iter(values.values()))
    return ", ".join(f"{value} in Part {part.upper()}" for part, value in values.items())


def _facts(default: str, each: Option) -> str:
    targets = [target for target in TARGETS if target not in each.refused] if each.refused else []
    low, high = each.minimum, each.maximum
    between = f"{low:.10g} to {high:.10g}" if math.isfinite(low) and math.isfinite(high) else range_of(each)
    between += " s" if each.duration and between else ""
    facts = [f"only {' and '.join(targets)}" if targets else "", f"default: {default}" if default else "", between]
    return "; ".join(filter(None, facts))
