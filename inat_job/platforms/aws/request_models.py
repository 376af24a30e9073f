"""Whether AWS would take a request, by botocore's own description of its services: no network, no credentials.

botocore's validator knows names, types and what is required; the description also has the patterns, the choices and the
longest lengths, which AWS checks when it is asked.
"""

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from botocore.loaders import create_loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator

from inat_job.errors import UsageError

_PLACEHOLDER = re.compile(r"<[A-Z_]+>")
_CLASSES = {r"\p{L}": r"\w", r"\p{N}": r"\d", r"\p{Z}": r"\s"}
"""Classes of characters that Java has and `re` has not, with the next larger that it has."""


def check(service: str, operation: str, request: Mapping[str, Any]) -> None:
    """Raise UsageError with all that the service would refuse, given the operation as in SubmitJob."""
    shape = _model(service).operation_model(operation).input_shape
    report = ParamValidator().validate(_stretched(request), shape)
    found = str(report.generate_report()).splitlines() if report.has_errors() else [*_beyond(shape, request, "")]
    if found:
        raise UsageError(f"AWS would refuse this {service}:{operation}: {'; '.join(found)}.")


def _stretched(value: Any) -> Any:
    """The same with placeholders that are too short for nothing."""
    if isinstance(value, Mapping):
        return {name: _stretched(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_stretched(each) for each in value]
    return _PLACEHOLDER.sub(lambda found: f"{found[0]:_<64}", value) if isinstance(value, str) else value


@cache
def _model(service: str) -> ServiceModel:
    return ServiceModel(create_loader().load_service_model(service, "service-2"), service)


def _beyond(shape: Any, value: Any, where: str) -> Iterator[str]:
    """What is wrong with a value of the right type."""
    if shape.type_name == "structure":
        for name, each in value.items():
            yield from _beyond(shape.members[name], each, f"{where}.{name}".lstrip("."))
    elif shape.type_name == "list":
        yield from _size(shape, len(value), where, "entries")
        for number, each in enumerate(value):
            yield from _beyond(shape.member, each, f"{where}[{number}]")
    elif shape.type_name == "map":
        yield from _size(shape, len(value), where, "entries")
        for name, each in value.items():
            yield from _beyond(shape.key, name, f"the key {name!r} of {where}")
            yield from _beyond(shape.value, each, f"{where}.{name}")
    elif shape.type_name == "string":
        yield from _text(shape, value, where)
    elif shape.type_name in ("integer", "long"):
        yield from _size(shape, value, where, "")


def _size(shape: Any, size: int, where: str, of: str) -> Iterator[str]:
    limit = shape.metadata.get("max")
    if limit is not None and size > limit:
        yield f"{where} is {size} {of}".rstrip() + f", at most {limit} will do"


def _text(shape: Any, value: str, where: str) -> Iterator[str]:
    if _PLACEHOLDER.search(value):  # of a dry run
        return
    yield from _size(shape, len(value), where, "characters")
    if shape.enum and value not in shape.enum:
        yield f"{where} is {value!r}, which is none of its choices"
    pattern = shape.metadata.get("pattern")
    if pattern and not _fits(pattern, value):
        yield f"{where} is {value!r}, which does not fit {pattern}"


def _fits(pattern: str, value: str) -> bool:
    for theirs, ours in _CLASSES.items():
        pattern = pattern.replace(theirs, ours)
    return re.fullmatch(pattern, value, re.DOTALL) is not None
