"""Checks a request against botocore's own models of the AWS services, without a network or credentials.

botocore's validator checks names, types and required fields. The models also have patterns, enums and maximum lengths,
which otherwise only AWS itself would check.
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
_LARGEST = {"integer": 2**31 - 1, "long": 2**63 - 1}
"""The largest number of a type, where a model has no maximum."""
_JAVA_CLASSES = {r"\p{L}": r"\w", r"\p{N}": r"\d", r"\p{Z}": r"\s"}
"""Character classes of Java's regexes that `re` lacks, with the nearest larger class that it has."""


def check(service: str, operation: str, request: Mapping[str, Any]) -> None:
    """Raise UsageError with everything that the service would refuse; the operation as in SubmitJob."""
    shape = _model(service).operation_model(operation).input_shape
    report = ParamValidator().validate(_with_long_placeholders(request), shape)
    errors = str(report.generate_report()).splitlines() if report.has_errors() else [*_errors(shape, request, "")]
    if errors:
        raise UsageError(f"AWS would refuse this {service}:{operation}: {'; '.join(errors)}.")


def _with_long_placeholders(value: Any) -> Any:
    """The same with all placeholders longer than any minimum length."""
    if isinstance(value, Mapping):
        return {name: _with_long_placeholders(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_long_placeholders(each) for each in value]
    return _PLACEHOLDER.sub(lambda found: f"{found[0]:_<64}", value) if isinstance(value, str) else value


@cache
def _model(service: str) -> ServiceModel:
    return ServiceModel(create_loader().load_service_model(service, "service-2"), service)


def _errors(shape: Any, value: Any, path: str) -> Iterator[str]:
    """What is wrong with a value of the right type."""
    if shape.type_name == "structure":
        for name, each in value.items():
            yield from _errors(shape.members[name], each, f"{path}.{name}".lstrip("."))
    elif shape.type_name == "list":
        yield from _size_errors(shape, len(value), path, "entries")
        for number, each in enumerate(value):
            yield from _errors(shape.member, each, f"{path}[{number}]")
    elif shape.type_name == "map":
        yield from _size_errors(shape, len(value), path, "entries")
        for name, each in value.items():
            yield from _errors(shape.key, name, f"the key {name!r} of {path}")
            yield from _errors(shape.value, each, f"{path}.{name}")
    elif shape.type_name == "string":
        yield from _text_errors(shape, value, path)
    elif shape.type_name in ("integer", "long"):
        yield from _size_errors(shape, value, path, "")


def _size_errors(shape: Any, size: int, path: str, unit: str) -> Iterator[str]:
    maximum = shape.metadata.get("max", _LARGEST.get(shape.type_name))
    if maximum is not None and size > maximum:
        yield f"{path} is {size} {unit}".rstrip() + f", at most {maximum} are allowed"


def _text_errors(shape: Any, value: str, path: str) -> Iterator[str]:
    if _PLACEHOLDER.search(value):  # in a dry run
        return
    yield from _size_errors(shape, len(value), path, "characters")
    if shape.enum and value not in shape.enum:
        yield f"{path} is {value!r}, which is none of its choices"
    pattern = shape.metadata.get("pattern")
    if pattern and not _matches(pattern, value):
        yield f"{path} is {value!r}, which does not match {pattern}"


def _matches(pattern: str, value: str) -> bool:
    for java, python in _JAVA_CLASSES.items():
        pattern = pattern.replace(java, python)
    return re.fullmatch(pattern, value, re.DOTALL) is not None
