"""Removes secrets from a text: those in the environment, and those in addresses that the text contains."""

import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote

from inat_job.address import quote_login, split_login

_SECRET_NAME = re.compile(
    r".*(SECRET|TOKEN|PASSW|PASSPHRASE|_PASS$|_PWD$|API_?KEY|_KEY$|CONNECTION_STRING)(?!.*_(FILE|URI|ID)$).*",
    re.IGNORECASE,
)
"""Names of variables whose values are secrets; a variable that only says where a secret is stored is not one."""

MIN_SECRET_LENGTH = 8
"""A shorter value is not treated as a secret: it could be a word of any sentence."""

_ADDRESS = re.compile(r"\b[A-Za-z][\w+.-]*://\S+")
_QUERY = re.compile(r"(\w://[^\s?'\"]*)\?[^\s'\"#]+")


def redact(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` with `***` for each secret of the environment, and for login and query of each address.

    For texts that the job did not write itself: tracebacks, errors of libraries, the user's input.
    """
    for secret in sorted(set(_secrets(environment)), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _QUERY.sub(r"\1?***", _ADDRESS.sub(_hide_login, text))


def one_line(error: Exception) -> str:
    """What an error of a library says, in one line without secrets."""
    return redact(" ".join(str(error).split())) or type(error).__name__


def _hide_login(address: re.Match[str]) -> str:
    start, login, rest = split_login(address[0])
    return f"{start}***@{rest}" if login else address[0]


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        secrets = [value] if _SECRET_NAME.fullmatch(name) else _url_passwords(value)
        yield from (secret for secret in secrets if len(secret) >= MIN_SECRET_LENGTH)


def _url_passwords(value: str) -> list[str]:
    """The password of a URL, both percent-encoded and decoded."""
    password = split_login(value)[1].partition(":")[2]
    return [password, unquote(password), quote_login(f"x://:{password}@")[5:-1]] if password else []
