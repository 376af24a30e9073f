"""A option is one setting: its flag, help, range and parser, declared where the field is, read by everything else."""

import dataclasses
import math
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

from inat_job.errors import UsageError

# Parameters that sign a URL, at Amazon, Google and Azure, or let one in: another of them is the same object.
_SIGNATURE = re.compile(
    r"x-(amz|goog)-.*|.*(signature|token|secret|passw|key).*|googleaccessid|expires|policy"
    r"|sig|s[eprtv]|spr|sip|sk(oid|tid|[tesv])",
    re.IGNORECASE,
)

Section = TypeVar("Section")


@dataclass(frozen=True)
class Option:
    """What is known of one setting.

    `name` is the flag without dashes; `decides` tells whether its value decides the result, and so the run id. `uri` is
    for URIs and paths, which can hold secrets; `names` is a pattern of the values that are neither, but names. `was` is
    what stood where now nothing is set: to a run of that time it is the same. `bare` is what a flag without a value
    means.
    """

    help: str
    name: str = ""
    choices: tuple[str, ...] = ()
    minimum: float = -math.inf
    maximum: float = math.inf
    decides: bool = True
    duration: bool = False
    uri: bool = False
    names: str = ""
    was: Any = None
    bare: Any = None

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "INAT_" + self.name.upper().replace("-", "_")


def option(default: Any, help: str, **facts: Any) -> Any:
    """A dataclass field that is a setting."""
    return dataclasses.field(default=default, metadata={"option": Option(help=help, **facts)})


def options_of(section: type) -> dict[str, tuple[Option, Any]]:
    """Each field of a section: its option, named after the field where it names itself nothing else, and its type."""
    hints = typing.get_type_hints(section)
    found = {}
    for field in dataclasses.fields(section):
        each: Option = field.metadata["option"]
        name = each.name or field.name.replace("_", "-")
        found[field.name] = (dataclasses.replace(each, name=name), hints[field.name])
    return found


def parse(each: Option, kind: Any, value: Any) -> Any:
    """`value`, text or already typed (from a file), as the field's type.

    Raises UsageError, which names the flag, the value and what would do.
    """
    try:
        return _parsed(each, kind, value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{each.flag} is {value!r}: it must be {_wanted(each, kind)}.") from None


def timed(each: Option) -> Option:
    """The same option, whose value is a duration."""
    return dataclasses.replace(each, duration=True)


def _parsed(each: Option, kind: Any, value: Any) -> Any:
    if isinstance(kind, types.UnionType):
        kind = next(arm for arm in kind.__args__ if arm is not type(None))
        if value is None or (kind is not str and str(value).lower() == "none"):
            return None
    if each.duration:
        return _seconds(value)
    if kind is bool:
        return _boolean(value)
    if kind is str:
        return _text(value)
    if typing.get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
        item = typing.get_args(kind)[0]
        return tuple(_text(part).strip() if item is str else _number(item, part) for part in parts)
    return _number(kind, value)


def parsed(section: type[Section], given: Mapping[str, Any]) -> Section:
    """A section of the values that are given, by field, text or typed; the others are its defaults.

    Raises UsageError, as `parse` and the section itself do.
    """
    known = options_of(section)
    return section(**{field: parse(*known[field], value) for field, value in given.items() if value is not None})


def check(section: Any) -> None:
    """Raise UsageError for the first value of a section that is out of its range."""
    for field, (each, _) in options_of(type(section)).items():
        value = getattr(section, field)
        if each.uri and value is not None:
            _check_uri(each, value)
        parts = value if isinstance(value, tuple) else (value,)
        for part in parts if each.choices else ():
            if part not in each.choices:
                raise UsageError(f"{each.flag} is {part!r}: it must be one of {', '.join(each.choices)}.")
        for number in parts:
            if isinstance(number, int | float) and not each.minimum <= number <= each.maximum:
                raise UsageError(f"{each.flag} is {number}: it must be {_range(each)}.")
            if isinstance(number, float) and not math.isfinite(number):
                raise UsageError(f"{each.flag} is {number}: it must be a finite number.")


def _check_uri(each: Option, value: str) -> None:
    try:
        urlsplit(value)
    except ValueError as error:  # the value itself may hold a password
        raise UsageError(f"{each.flag} is no URI ({error}): check its brackets.") from None


def _range(each: Option) -> str:
    low, high = f"at least {each.minimum:g}", f"at most {each.maximum:g}"
    return " and ".join([low] * (each.minimum > -math.inf) + [high] * (each.maximum < math.inf))


def _wanted(each: Option, kind: Any) -> str:
    if each.duration:
        return "a duration such as 90m, 1h30m or a number of seconds"
    if typing.get_origin(kind) is tuple:
        return "names separated by commas" if typing.get_args(kind)[0] is str else "whole numbers separated by commas"
    if isinstance(kind, types.UnionType):
        return _wanted(each, kind.__args__[0])
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text, and not empty")


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _number(kind: type, value: Any) -> Any:
    """Text or a number of this kind: a file's `true` is no 1, and its 4.7 no 4."""
    if isinstance(value, bool) or (kind is int and isinstance(value, float)):
        raise ValueError
    return kind(value)


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
    return float(_number(float, value))


def public_uri(uri: str) -> str:
    """`uri` without user, password and query, which can be secrets."""
    return _without_secrets(uri, lambda parameter: False)


def unsigned_uri(uri: str) -> str:
    """`uri` without user, password and signature: the same object by any of its signatures.

    It keeps the rest of the query, which can be secret too, so it may go nowhere but into a hash.
    """
    return _without_secrets(uri, lambda parameter: not _SIGNATURE.fullmatch(parameter.partition("=")[0]))


def identity(each: Option, value: str) -> str:
    """What a URI, path or name means in any folder and by any signature, for a hash alone."""
    if re.fullmatch(each.names, value):
        return value
    return unsigned_uri(value) if "://" in value else absolute(value)


def deciding(each: Option, value: Any) -> Any:
    """The value as the fingerprint takes it."""
    if value is None:
        return each.was
    return identity(each, value) if each.uri and value else value


def _without_secrets(uri: str, keep: Callable[[str], bool]) -> str:
    if "://" not in uri:
        return uri
    parts = urlsplit(uri)
    query = "&".join(parameter for parameter in parts.query.split("&") if keep(parameter))
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, parts.fragment))


def absolute(path: str) -> str:
    """A local path that holds in any folder."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 (resolve() would follow links)
