"""What may be said aloud: a text without the secrets that the environment holds, or an address in the text does."""

import os
import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote, urlsplit

_SECRET = re.compile(r".*(SECRET|TOKEN|PASSW|API_?KEY|_KEY$)(?!.*_(FILE|URI|ID)$).*", re.IGNORECASE)
"""Names of variables whose values are secrets, as those that only say where one lies are not."""

SHORTEST = 8
"""A value of fewer characters is no secret worth the name, and could be a word of any sentence."""

_LOGIN = re.compile(r"(?<=://)[^\s/?#'\"]+@")
_QUERY = re.compile(r"(\w://[^\s?'\"]*)\?[^\s'\"#]+")


def discreet(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """`text` with stars for each secret of the environment, and for login and query of each address.

    It is for words of other origin than ours, tracebacks and what a person typed: our own leave secrets out.
    """
    for secret in sorted(set(_secrets(environment)), key=len, reverse=True):
        text = text.replace(secret, "***")
    return _QUERY.sub(r"\1?***", _LOGIN.sub("***@", text))


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        found = [value] if _SECRET.fullmatch(name) else _passwords(value)
        yield from (secret for secret in found if len(secret) >= SHORTEST)


def _passwords(value: str) -> list[str]:
    """The password of an address, as it is written and as it is meant."""
    try:
        password = urlsplit(value).password if "://" in value else None
    except ValueError:
        return []
    return [password, unquote(password)] if password else []
