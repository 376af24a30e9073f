"""Addresses and paths: of what they are, what is wrong with their start, and where a login ends: only this knows it."""

import base64
import os
import re
from urllib.parse import quote, unquote, urlsplit

BUCKETS = ("s3://", "gs://", "az://")
"""The addresses of object stores, where a key may hold every sign: ? and # too."""

_EXAMPLES = {
    **{start: f"{start}bucket/prefix" for start in BUCKETS},
    **{start: f"{start}host/folder" for start in ("http://", "https://")},
    "file://": "file:///folder",
}
_OF_STORE = re.compile(r"(s3|gs|az|https?|file):(/*)(?=(.?))", re.IGNORECASE)
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


def fault_of(address: str) -> str:
    """What is wrong with the start of a store's address, and the fix; empty if nothing is.

    Such an address would pass for a local path: s3:/bucket/runs, or s3:// and then the value of an unset variable.
    """
    match = _OF_STORE.match(address)
    if not match:
        return ""
    start, slashes, is_end = f"{match[1].lower()}://", len(match[2]), not match[3]
    if slashes < 2:
        why = "needs two slashes"
    elif start == "file://":
        why = "names no folder" if is_end and slashes == 2 else ""
    else:
        why = f"names no {'bucket' if start in BUCKETS else 'host'}" if is_end or slashes > 2 else ""
    return f"begins with {match[0]!r}, which {why}: give {_EXAMPLES[start]}" if why else ""


def start_of(address: str) -> str:
    """The scheme of an address, as it is written, with its slashes; empty for a local path."""
    match = _OF_STORE.match(address) or _START.match(address)
    return match[0] if match else ""


def child(folder: str, name: str) -> str:
    """The address of `name` in a folder, a path or URI that may end in a slash."""
    start = match[0] if (match := _START.match(folder)) else ""
    return f"{start}{folder[len(start) :].rstrip('/')}/{name}"


def expanded(path: str) -> str:
    """A local path with the folder of its user for a ~ at its start, as a shell has it."""
    return os.path.expanduser(path)  # noqa: PTH111 (Path's raises an error for an unknown user)


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


def may_hold_secret(address: str) -> bool:
    """Whether it is an address with a login or a query, either of which can be secret."""
    start, login, rest = split_login(address)
    return bool(login) or (bool(start) and "?" in rest)


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
