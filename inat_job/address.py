"""Whether an address is of a bucket, and its parts in which a login may be: only this module knows where one ends."""

import base64
import re
from urllib.parse import quote, unquote, urlsplit

BUCKETS = ("s3://", "gs://", "az://")
"""The addresses of object stores, where a key may hold every sign: ? and # too."""

_START = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST = re.compile(r"[^:\[\]]*(:[0-9]*)?|\[[^\]]*\](:[0-9]*)?")


def split_login(address: str) -> tuple[str, str, str]:
    """Scheme with `://`, login without its `@`, and the rest; scheme and login are empty where there are none.

    A login ends at the last `@` before the first slash, so that a password may hold `@`, `#` and `?`; or at the last
    one before a later slash, if what is before the first slash can be no host and port.
    """
    start = _START.match(address)
    if not start:
        return "", "", address
    rest = address[start.end() :]
    segments = rest.split("/")
    count = 1
    if "@" not in segments[0] and not _HOST.fullmatch(segments[0]):
        count = next((number for number, segment in enumerate(segments, 1) if "@" in segment), 1)
    end = "/".join(segments[:count]).rfind("@")
    return start[0], rest[: max(end, 0)], rest[end + 1 :]


def host_of(address: str) -> str:
    """Host and port of an address, for a message."""
    return re.split(r"[/?#]", split_login(address)[2], maxsplit=1)[0]


def quote_login(address: str) -> str:
    """The address with its login percent-encoded, as every parser of addresses understands it."""
    start, login, rest = split_login(address)
    return f"{start}{quote(login, safe='%:!$&()*+,;=~')}@{rest}" if login else address


def without_login(address: str) -> str:
    """The address without its login, which can be secret."""
    start, _, rest = split_login(address)
    return start + rest


def without_secrets(address: str) -> str:
    """The address without its login, query and fragment, which may all be secret."""
    return re.split(r"[?#]", without_login(address), maxsplit=1)[0]


def basic_login(uri: str) -> str | None:
    """The header for the login in an address, None without one."""
    parts = urlsplit(uri)
    if parts.username is None:
        return None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def as_utf8(name: str) -> str:
    """A URI, path or name that a report can hold: a path may have bytes that are not UTF-8, which become escapes."""
    return name.encode(errors="backslashreplace").decode()


def in_bucket(address: str) -> bool:
    """Whether it is the address of an object store, in upper or lower case."""
    return address.lower().startswith(BUCKETS)
