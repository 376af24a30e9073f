"""What a search varies: axes by setting, the spaces of both parts, and how a file narrows or extends them.

Nothing here imports Optuna, so that `--print-config` and a mistaken file are answered at once.
"""

import itertools
import math
import tomllib
import typing
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inat_job import options
from inat_job.address import expanded, may_hold_secret, start_of
from inat_job.configuration import SWEEP_TAKES, known_key, options_by_key, takes
from inat_job.errors import UsageError
from inat_job.settings import Settings

Value = str | int | float | bool
Space = Mapping[str, "Axis"]
"""Axis by setting, "section.field", in the order in which their values are drawn."""


@dataclass(frozen=True)
class Axis:
    """The values that a setting may take: `choices`, or numbers from `low` to `high`, both included.

    `log` draws the logarithm uniformly. `only_with` names another setting of the space and its values with which this
    one has an effect; otherwise it is not drawn.
    """

    choices: tuple[Value, ...] = ()
    low: float = math.nan
    high: float = math.nan
    log: bool = False
    integer: bool = False
    only_with: tuple[str, tuple[Value, ...]] | None = None

    def applies(self, drawn: Mapping[str, Value]) -> bool:
        """Whether the setting has an effect beside the values that are drawn already."""
        if self.only_with is None or self.only_with[0] not in drawn:
            return True
        key, values = self.only_with
        return drawn[key] in values

    def ends(self) -> Sequence[Value]:
        """The values that must be valid for all to be."""
        return self.choices or ((int(self.low), int(self.high)) if self.integer else (self.low, self.high))

    def values(self) -> Sequence[Value]:
        """All values; none for real numbers, of which there are too many."""
        return self.choices or (range(int(self.low), int(self.high) + 1) if self.integer else ())

    def as_dict(self) -> dict[str, Any]:
        """The axis as `--space` reads it."""
        if self.choices:
            return {"choices": list(self.choices)}
        low, high = self.ends()
        return {"low": low, "high": high, "log": self.log}


def real(low: float, high: float, log: bool = False) -> Axis:
    """An axis of real numbers."""
    return Axis(low=low, high=high, log=log)


def whole(low: int, high: int, log: bool = False) -> Axis:
    """An axis of whole numbers."""
    return Axis(low=low, high=high, log=log, integer=True)


def one_of(*choices: Value, only_with: tuple[str, tuple[Value, ...]] | None = None) -> Axis:
    """An axis of some values."""
    return Axis(choices=choices, only_with=only_with)


PART_A: Space = {
    "model.filters": whole(16, 64, log=True),
    "model.filter_organisation": one_of("double", "same", "half"),
    "model.kernel_sizes": one_of("3", "5", "5,5,3,3,3", "7,5,3,3,3"),
    "model.activation": one_of("relu", "gelu", "silu", "mish"),
    "model.dense": whole(64, 1024, log=True),
    "model.dropout": real(0.0, 0.6),
    "model.batch_norm": one_of(True, False),
    "model.pooling": one_of("gap", "flatten"),
    "train.augment": one_of(True, False),
    "train.crop_scale": Axis(low=0.2, high=1.0, only_with=("train.augment", (True,))),
    "train.colour": Axis(low=0.0, high=0.6, only_with=("train.augment", (True,))),
    "train.lr": real(1e-4, 1e-2, log=True),
    "train.weight_decay": real(1e-3, 0.5, log=True),
    "train.batch_size": one_of(32, 64, 128, 256),
    "train.label_smoothing": real(0.0, 0.2),
}
PART_B: Space = {
    "model.strategy": one_of("full", "lp-ft", "gradual", "last-k", "head"),
    "model.backbone": one_of("resnet50", "convnext_tiny", "efficientnet_v2_s"),
    "model.layer_decay": Axis(low=0.1, high=1.0, log=True, only_with=("model.strategy", ("full", "lp-ft", "gradual"))),
    "data.image_size": one_of(224, 288),
    "train.lr": real(3e-4, 3e-2, log=True),
    "train.weight_decay": real(1e-3, 0.2, log=True),
    "train.label_smoothing": real(0.0, 0.2),
    "train.crop_scale": Axis(low=0.2, high=1.0, only_with=("train.augment", (True,))),
}
SPACES: Mapping[str, Space] = {"a": PART_A, "b": PART_B}
"""The space of each part, around its recipe."""

_OF_IMAGES = ("data.image_size", "data.test_size", "data.eval_crop")
_SHARED = ("train.seed", "train.accelerator")
"""Settings of a trial that all trials share: with others they could not be compared."""

_FIELDS = {"low", "high", "log", "choices"}


def space_of(settings: Settings, given: str | None = None, fixed: Collection[str] = ()) -> dict[str, Axis]:
    """The space of the settings' part, changed by TOML or a file of it, without the settings that are `fixed`.

    There, a table is an axis that is added or replaced, and `section.field = false` removes one. What has no effect
    beside the settings that are not searched is left out too, and so is an axis without the settings' own value: a
    preset is searched around itself. Raises UsageError for what is no axis of an existing setting, for a setting that
    all trials share, and for a space that is empty.
    """
    known = options_by_key(settings)
    every, own = SPACES[settings.part], settings.by_key()
    space = {key: axis for key, axis in every.items() if _is_on(_drawn(own[key], axis), axis)}
    where = _named(given or "")
    for key, table in _tables(given, where).items() if given else ():
        known_key(key, known, where)
        if table is False:
            space.pop(key, None)
            continue
        if not _is_searchable(key):
            raise UsageError(
                f"{where}: {key} is the same for all trials: search settings of model and train, or "
                f"{', '.join(_OF_IMAGES)}."
            )
        before = every.get(key)
        space[key] = _axis(key, table, where, before.only_with if before else None, *known[key])
    space = {key: axis for key, axis in space.items() if key not in fixed}
    values = {key: value for key, value in own.items() if key not in space}
    space = {key: axis for key, axis in space.items() if axis.applies(values)}
    if not space:
        raise UsageError("Nothing is left to search: every setting of the space is fixed.")
    return space


def _is_searchable(key: str) -> bool:
    """Whether a setting may differ between trials: it is of the network or its training, as far as a trial takes it."""
    is_of_trial = key.startswith(("model.", "train.")) and takes(SWEEP_TAKES, key)
    return key in _OF_IMAGES or (is_of_trial and key not in _SHARED)


def text_of(given: str) -> str:
    """The TOML of --space: the value itself if it contains an =, otherwise that of the file it names.

    Raises UsageError.
    """
    if "=" in given:
        return given
    if start := start_of(given):
        raise UsageError(f"--space begins with {start!r}, and must be TOML or a file of it here: download the file.")
    try:
        text = Path(expanded(given)).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"--space is {given}, which cannot be read ({error.strerror}): check the path.") from None
    except ValueError as error:
        raise _not_toml(_named(given), error) from None
    if "=" not in text:  # nor would a job that is given the text take it for TOML
        raise UsageError(f"--space {given} is not TOML that sets a range: write it as --print-config does.")
    return text


def _named(given: str) -> str:
    """How an error names --space."""
    return "--space" if "=" in given else f"--space {given}"


def _not_toml(where: str, error: Exception) -> UsageError:
    return UsageError(f"{where} is not TOML ({error}): write it as --print-config does.")


def _tables(given: str, where: str) -> dict[str, Any]:
    try:
        sections = tomllib.loads(text_of(given))
    except (ValueError, RecursionError) as error:
        raise _not_toml(where, error) from None
    tables: dict[str, Any] = {}
    for section, fields in sections.items():
        if not isinstance(fields, dict):
            raise UsageError(f"{where}: {section!r} is not a section: write [{section}.field] above its range.")
        tables |= {f"{section}.{field}": table for field, table in fields.items()}
    for key, table in tables.items():
        _refuse_secrets(key, table, where)
    return tables


def _refuse_secrets(key: str, value: Any, where: str) -> None:
    """Raise UsageError for an address with a login or a query, which the study, the log and the report would show."""
    if isinstance(value, str) and may_hold_secret(value):
        raise UsageError(
            f"{where}: {key} holds an address with a login or a query, which all files of the sweep would show: name "
            "the address without it and give the credentials in the environment, or download the file and name it."
        )
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _refuse_secrets(key, each, where)


def _axis(
    key: str, table: Any, where: str, only_with: tuple[str, tuple[Value, ...]] | None, each: options.Option, kind: Any
) -> Axis:
    example = "low and high, or choices"
    if not isinstance(table, dict) or set(table) - _FIELDS or not ({"low", "high"} <= set(table) or "choices" in table):
        raise UsageError(f"{where}: {key} is {table!r}: give {example}, or false to leave it as it is.")
    if "choices" in table:
        axis = _choices_axis(key, table, where, only_with)
    else:
        axis = _range_axis(key, table, where, only_with, float in (kind, *typing.get_args(kind)))
    for value in axis.ends():
        try:
            options.check_value(each, options.parse(each, kind, value))
        except UsageError as error:
            raise UsageError(f"{where}: {key} may not be {value!r}. {error}") from None
    return axis


def _choices_axis(key: str, table: dict[str, Any], where: str, only_with: Any) -> Axis:
    choices = table["choices"]
    plain = isinstance(choices, list) and all(isinstance(each, str | int | float | bool) for each in choices)
    if set(table) != {"choices"} or not plain or len(set(choices)) != len(choices) or not choices:
        raise UsageError(f"{where}: {key} has {table!r}: choices is a list of different texts, numbers or booleans.")
    return Axis(choices=tuple(choices), only_with=only_with)


def _range_axis(key: str, table: dict[str, Any], where: str, only_with: Any, takes_fractions: bool) -> Axis:
    low, high, log = table["low"], table["high"], table.get("log", False)
    numbers = all(type(each) in (int, float) and math.isfinite(each) for each in (low, high))
    if not numbers or type(log) is not bool or low >= high or (log and low <= 0):
        raise UsageError(f"{where}: {key} has {table!r}: low must be less than high, and with log = true more than 0.")
    if takes_fractions:
        return Axis(low=float(low), high=float(high), log=log, only_with=only_with)
    return Axis(low=low, high=high, log=log, integer=type(low) is type(high) is int, only_with=only_with)


def points(space: Space, most: int) -> list[dict[str, Value]]:
    """All points of a space; none if it has more than `most`."""
    if not all(axis.values() for axis in space.values()):
        return []
    found = list(itertools.islice(_points(list(space.items()), {}), most + 1))
    return found if len(found) <= most else []


def _points(axes: Sequence[tuple[str, Axis]], drawn: dict[str, Value]) -> Iterator[dict[str, Value]]:
    """The points that begin with the values `drawn`, given the axes that are left."""
    if not axes:
        yield drawn
        return
    key, axis = axes[0]
    if not axis.applies(drawn):
        yield from _points(axes[1:], drawn)
        return
    for value in axis.values():
        yield from _points(axes[1:], {**drawn, key: value})


def default_point(settings: Settings, space: Space) -> dict[str, Value]:
    """The settings' own values on the axes, which the first trial has, as far as the axes have them."""
    point, own = dict[str, Value](), settings.by_key()
    for key, axis in space.items():
        value = own[key]
        if value is None or not axis.applies(point):
            continue
        if _is_on(drawn := _drawn(value, axis), axis):
            point[key] = drawn
    return point


def _drawn(value: Any, axis: Axis) -> Value:
    """A setting's value as an axis has it: several numbers are a text, and one is a number or a text."""
    if not isinstance(value, tuple):
        assert isinstance(value, str | int | float | bool)
        return value
    text = ",".join(map(str, value))
    return text if axis.choices else int(text) if len(value) == 1 else text


def _is_on(value: Value, axis: Axis) -> bool:
    if axis.choices:
        return value in axis.choices
    return isinstance(value, int | float) and axis.low <= value <= axis.high


def as_text(space: Space) -> str:
    """The space as TOML, for `--space`."""
    lines = []
    for key, axis in space.items():
        lines.append(f"[{key}]")
        lines += [f"{name} = {options.as_toml(value)}" for name, value in axis.as_dict().items()]
        lines.append("")
    return "\n".join(lines)
