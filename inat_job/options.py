"""An option is one setting: its flag, help, range and parser, declared at the field and read by everything else."""

import dataclasses
import json
import math
import os
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

from inat_job import near_misses
from inat_job.address import as_utf8, expanded, fault_of, quote_login, start_of, without_login
from inat_job.errors import UsageError

# Query parameters that sign a URL at Amazon, Google or Azure, or authenticate: they do not change which object it is.
_SIGNATURE = re.compile(
    r"x-(amz|goog)-.*|.*(signature|token|secret|passw|key).*|googleaccessid|expires|policy"
    r"|sig|s[eprtv]|spr|sip|sk(oid|tid|[tesv])",
    re.IGNORECASE,
)

Section = TypeVar("Section")


@dataclass(frozen=True)
class Option:
    """What is known of one setting.

    `name` is the flag without dashes, `short` its one-letter form. `metavar` and `shown_default` are what `--help`
    shows where the field's type and default say too little. `in_fingerprint` says whether the value decides the result,
    and so the run id. `uri` marks URIs and paths, which can hold secrets; `names` is a pattern of the values that are
    neither, but names. `repeated` marks a list whose flag is given once for each item. `bare` is the value of a flag
    that is given without one. `refused` maps a target of `submit` that has no use for the option to the reason. `off`
    holds the one value that does what versions without the option did: it is left out of the fingerprint, and a stored
    run that lacks the option has it.
    """

    help: str
    name: str = ""
    short: str = ""
    metavar: str = ""
    shown_default: str = ""
    choices: tuple[str, ...] = ()
    minimum: float = -math.inf
    maximum: float = math.inf
    in_fingerprint: bool = True
    duration: bool = False
    repeated: bool = False
    uri: bool = False
    names: str = ""
    bare: Any = None
    off: tuple[Any, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    @property
    def flag(self) -> str:
        return f"--{self.name}"

    @property
    def is_local(self) -> bool:
        """Whether it takes a path on this machine, and no URI."""
        return self.metavar == "PATH" and not self.uri

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "INAT_" + self.name.upper().replace("-", "_")


class SettingsSection:
    """Settings that are checked as they are made."""

    def __post_init__(self) -> None:
        check(self)


_KNOWN: dict[type, Mapping[str, tuple[Option, Any]]] = {}
"""What `options_of` has found: to read the types takes a while, and every option is asked for often."""


def option(default: Any, help: str, **details: Any) -> Any:
    """A dataclass field that is a setting."""
    return dataclasses.field(default=default, metadata={"option": Option(help=help, **details)})


def options_of(section: type) -> Mapping[str, tuple[Option, Any]]:
    """Option and type of each field of a section; an option without a name is named after its field."""
    if section not in _KNOWN:
        hints = typing.get_type_hints(section)
        declared: dict[str, Option] = {each.name: each.metadata["option"] for each in dataclasses.fields(section)}
        names = {field: each.name or field.replace("_", "-") for field, each in declared.items()}
        _KNOWN[section] = {
            field: (dataclasses.replace(each, name=names[field]), hints[field]) for field, each in declared.items()
        }
    return _KNOWN[section]


def parse(each: Option, kind: Any, value: Any) -> Any:
    """`value`, text or already typed (from a file), as the field's type.

    Raises UsageError with the flag, the value and what is allowed.
    """
    try:
        return _parsed(each, kind, value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{each.flag} is {value!r}: it must be {_wanted(each, kind)}.") from None


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
        text = _text(value)
        return quote_login(text) if each.uri else expanded(text) if each.is_local else text
    if typing.get_origin(kind) is tuple:
        listed = isinstance(value, list | tuple)
        parts = value if listed else value.split(",") if isinstance(value, str) else [value]
        item = typing.get_args(kind)[0]
        if item is str and value == "none":
            return ()
        if each.repeated:
            return tuple(map(str, parts))
        return tuple(_text(part).strip() if item is str else _number(item, part) for part in parts)
    return _number(kind, value)


def as_text(value: Any) -> str:
    """A setting's value as `parse` reads it from text."""
    if value is None or (isinstance(value, tuple | list) and not value):
        return "none"
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def as_toml(value: Any) -> str:
    """A setting's value as TOML. A lone surrogate, which TOML cannot have, is written as an escape."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_toml, value))}]"
    if isinstance(value, str):
        quoted = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which JSON need not escape
        return as_utf8(quoted)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def parse_section(section: type[Section], given: Mapping[str, Any]) -> Section:
    """A section with the given values (text or typed, by field) and its defaults for the others.

    Raises UsageError, as `parse` and the section itself do.
    """
    known = options_of(section)
    return section(**{field: parse(*known[field], value) for field, value in given.items() if value is not None})


def check(section: Any) -> None:
    """Raise UsageError for the first value of a section that is out of range."""
    for name, (each, _) in options_of(type(section)).items():
        check_value(each, getattr(section, name))


def check_value(each: Option, value: Any) -> None:
    """Raise UsageError if a parsed value is out of range."""
    if each.uri and value is not None:
        _check_uri(each, value)
    if each.is_local and (start := start_of(value or "")):
        raise UsageError(f"{each.flag} begins with {start!r}, and must be a path on this machine: give a local path.")
    parts = value if isinstance(value, tuple) else (value,)
    for part in parts if each.choices else ():
        if part not in each.choices:
            ending = near_misses.ending(near_misses.choice(part, each.choices))
            raise UsageError(f"{each.flag} is {part!r}: it must be one of {', '.join(each.choices)}{ending}")
    for number in parts:
        if isinstance(number, int | float) and not each.minimum <= number <= each.maximum:
            raise UsageError(f"{each.flag} is {number}: it must be {range_of(each)}.")
        if isinstance(number, float) and not math.isfinite(number):
            raise UsageError(f"{each.flag} is {number}: it must be a finite number.")


def _check_uri(each: Option, value: str) -> None:
    if fault := fault_of(value):
        raise UsageError(f"{each.flag} {fault}.")
    try:
        urlsplit(without_login(value))
    except ValueError as error:  # the value itself may hold a password
        raise UsageError(f"{each.flag} is not a URI ({error}): check its brackets.") from None


def range_of(each: Option) -> str:
    """The numbers that are allowed, empty where any is."""
    low, high = f"at least {each.minimum:.10g}", f"at most {each.maximum:.10g}"
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
    """Text or a number of this kind: a file's `true` is not 1, and its 4.7 is not 4."""
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
    """`uri` without user, password and signature: the same object, no matter who signed its address and when.

    It keeps the rest of the query, which can be secret too, so it may only go into a hash.
    """
    return _without_secrets(uri, lambda parameter: not _SIGNATURE.fullmatch(parameter.partition("=")[0]))


def identity(each: Option, value: str) -> str:
    """A URI, path or name in the form that is the same in any folder and with any signature, for a hash only."""
    if re.fullmatch(each.names, value):
        return value
    return unsigned_uri(value) if "://" in value else absolute(value)


def fingerprint_value(each: Option, value: Any) -> Any:
    """The value as it enters the fingerprint."""
    return identity(each, value) if each.uri and value else value


def _without_secrets(uri: str, keep: Callable[[str], bool]) -> str:
    if "://" not in uri:
        return uri
    parts = urlsplit(without_login(uri))
    query = "&".join(parameter for parameter in parts.query.split("&") if keep(parameter))
    end = (f"?{query}" if query else "") + (f"#{parts.fragment}" if parts.fragment else "")
    return f"{parts.scheme}://{parts.netloc}{parts.path}{end}"  # urlunsplit would write sqlite:/x.db


def absolute(path: str) -> str:
    """A local path as it is from the root."""
    return os.path.abspath(expanded(path))  # noqa: PTH100 (resolve() would follow links)
