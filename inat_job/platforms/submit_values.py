"""Checks of the values that `submit` is given: names that are repeated, patterns, and the largest numbers.

Each of these values is a field of SubmitOptions, which a `request` is.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from inat_job.errors import UsageError
from inat_job.options import options_of

OWN_VARIABLE = re.compile("(INAT|KUBERNETES|AWS_BATCH)_|JOB_COMPLETION_INDEX$")
"""Names of variables that are settings, or that the platform sets."""

INT32 = 2**31 - 1
"""The largest value of an integer of 32 bits, which most numbers are in the platforms' APIs."""

ROLE = r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+"

_HOST = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?"
_PATH = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"
_IMAGE = (
    rf"(({_HOST}(\.{_HOST})*|\[[a-fA-F0-9:]+\])(:\d+)?/)?{_PATH}(/{_PATH})*"
    r"(:\w[\w.-]{0,127})?(@[A-Za-z][A-Za-z0-9]*([-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,})?"
)
"""The grammar of an image's name: https://pkg.go.dev/github.com/distribution/reference"""

_REGION = {"region": r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"}
"""What boto3 takes for a region."""


def _flag(request: Any, field: str) -> str:
    return options_of(type(request))[field][0].flag


def check_values(request: Any) -> None:
    """Raise UsageError for a variable, tag or claim that is none, and for a name that is given twice."""
    for tag in request.tags:
        if not re.fullmatch(r"[^=\s]+=\S*", tag):
            raise UsageError(f"--tags has {tag!r}: write each as key=value.")
    _check_variables(request.env)
    for each in request.pvc:
        if ":" not in each:
            raise UsageError(f"--pvc is {each!r}: write it as NAME:/PATH.")
    for field in ("env", "tags"):
        _refuse_repeated(request, field, [each.partition("=")[0] for each in getattr(request, field)])
    for field in ("env_from_secret", "image_pull_secret"):
        _refuse_repeated(request, field, getattr(request, field))


def _check_variables(variables: Sequence[str]) -> None:
    """Raise UsageError for what is no variable, or one that is not for --env; its value may be secret, so it is not
    shown.
    """
    for each in variables:
        name, equals, _ = each.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UsageError(f"--env has {name if equals else 'no ='!r}: write it as NAME=VALUE.")
        if OWN_VARIABLE.match(name):
            raise UsageError(f"--env sets {name}, a variable of the job itself: use an option of the command.")


def _refuse_repeated(request: Any, field: str, names: Iterable[str]) -> None:
    """Raise UsageError for a name that is given twice, of which only one would count."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UsageError(f"{_flag(request, field)} has {name} twice: give it once.")
        seen.add(name)


def check_image_and_region(request: Any) -> None:
    """Raise UsageError for an image's name or a region that no platform accepts."""
    if request.image and not (_is_placeholder(request, request.image) or re.fullmatch(_IMAGE, request.image)):
        raise UsageError(
            f"--image is {request.image!r}: write it as REGISTRY/NAME:TAG or NAME@DIGEST, with the name in lower case."
        )
    check_patterns(request, _REGION)


def check_patterns(request: Any, patterns: Mapping[str, str]) -> None:
    """Raise UsageError for a value, or one of several, that its field's pattern does not match.

    A placeholder of a dry run matches anything.
    """
    for field, pattern in patterns.items():
        given = getattr(request, field) or ()
        for value in (given,) if isinstance(given, str) else given:
            if not (_is_placeholder(request, value) or re.fullmatch(pattern, value)):
                raise UsageError(f"{_flag(request, field)} is {value!r}: it must match {pattern}.")


def _is_placeholder(request: Any, value: str) -> bool:
    return bool(request.dry_run) and value.startswith("<")


def check_maxima(request: Any, maxima: Mapping[str, int], platform: str) -> None:
    """Raise UsageError for a number above its field's largest one."""
    for field, most in maxima.items():
        value = getattr(request, field)
        if value is not None and value > most:
            given = f"{value:.10g}" if isinstance(value, float) else value
            raise UsageError(f"{_flag(request, field)} is {given}: {platform} allows at most {most}.")
