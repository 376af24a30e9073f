"""A knob is one setting: its flag, help, range and parser, declared where the field is, read by everything else."""

import dataclasses
import math
import re
import types
import typing
from dataclasses import dataclass
from typing import Any

from inat_job.errors import UsageError


@dataclass(frozen=True)
class Knob:
    """What is known of one setting.

    `name` is the flag without dashes; `decides` tells whether its value decides the result, and so the run id.
    """

    help: str
    name: str = ""
    choices: tuple[str, ...] = ()
    minimum: float = -math.inf
    maximum: float = math.inf
    decides: bool = True
    duration: bool = False

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "INAT_" + self.name.upper().replace("-", "_")


def knob(default: Any, help: str, **facts: Any) -> Any:
    """A dataclass field that is a setting."""
    return dataclasses.field(default=default, metadata={"knob": Knob(help=help, **facts)})


def knobs_of(section: type) -> dict[str, tuple[Knob, Any]]:
    """Each field of a section: its knob, named after the field where it names itself nothing else, and its type."""
    hints = typing.get_type_hints(section)
    found = {}
    for field in dataclasses.fields(section):
        each: Knob = field.metadata["knob"]
        name = each.name or field.name.replace("_", "-")
        found[field.name] = (dataclasses.replace(each, name=name), hints[field.name])
    return found


def parse(each: Knob, kind: Any, value: Any) -> Any:
    """`value`, text or already typed (from a file), as the field's type.

    Raises UsageError, which names the flag, the value and what would do.
    """
    if isinstance(kind, types.UnionType):
        if value is None or str(value).lower() in ("none", ""):
            return None
        kind = next(arm for arm in kind.__args__ if arm is not type(None))
    try:
        if each.duration:
            return _seconds(value)
        if kind is bool:
            return _boolean(value)
        if typing.get_origin(kind) is tuple:
            parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
            return tuple(int(part) for part in parts)
        if kind is int and isinstance(value, bool | float):
            raise ValueError
        return kind(value)
    except (TypeError, ValueError):
        raise UsageError(f"{each.flag} is {value!r}: it must be {_wanted(each, kind)}.") from None


def check(section: Any) -> None:
    """Raise UsageError for the first value of a section that is out of its range."""
    for field, (each, _) in knobs_of(type(section)).items():
        value = getattr(section, field)
        if each.choices and value not in each.choices:
            raise UsageError(f"{each.flag} is {value!r}: it must be one of {', '.join(each.choices)}.")
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int | float) and not each.minimum <= number <= each.maximum:
                raise UsageError(f"{each.flag} is {number}: it must be {_range(each)}.")


def _range(each: Knob) -> str:
    low, high = f"at least {each.minimum:g}", f"at most {each.maximum:g}"
    return " and ".join([low] * (each.minimum > -math.inf) + [high] * (each.maximum < math.inf))


def _wanted(each: Knob, kind: Any) -> str:
    if each.duration:
        return "a duration such as 90m, 1h30m or a number of seconds"
    if typing.get_origin(kind) is tuple:
        return "whole numbers separated by commas"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")


def _boolean(value: Any) -> bool:
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    try:
        return known[str(value).lower()]
    except KeyError:
        raise ValueError from None


def _seconds(value: Any) -> float:
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", str(value))
    if match and any(match.groups()):
        days, hours, minutes, seconds = (int(group or 0) for group in match.groups())
        return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
    return float(value)
