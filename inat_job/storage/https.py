"""A folder of a web server as a read-only store: urllib3's client, with retries and clear errors."""

import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TypeVar, Unpack
from urllib.parse import quote, urljoin, urlsplit

from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, LocationValueError, NameResolutionError, ProxyError

from inat_job.address import basic_login, host_of, without_secrets
from inat_job.errors import BadDataError, ConflictError, NoPermissionError, PreconditionFailed
from inat_job.storage.base import (
    UNKNOWN_SIZE,
    Conditions,
    Entry,
    StorageOptions,
    Transfer,
    checked_key,
)
from inat_job.storage.checksums import Checksum, stated_checksum
from inat_job.storage.ranged_download import BLOCK_SIZE, RangeSource, download, require_range, verified
from inat_job.storage.retry import RetryableError, with_retries
from inat_job.storage.web_connections import WebConnections

_MOST_REDIRECTS = 10
_SHORT_BODY = 64 * 1024
_FIRST_BYTES = 4096
"""Bytes that are read of a server without ranges for a look at an object."""
R = TypeVar("R")
_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524})
_CHANGED = frozenset({412, 416})
_SAFE = "%/:?=&+,;@!$'()*~#[]"
"""Signs of an address that are not quoted."""


class HttpsStore:
    """The files of a web server under `uri`. A key may have a query; messages and `uri` never do."""

    def __init__(self, uri: str, options: StorageOptions) -> None:
        self.uri = without_secrets(uri).rstrip("/")
        self._options = options
        self._login = basic_login(uri)
        self._connections = WebConnections(options.threads)

    def list(self, prefix: str = "", most: int | None = None) -> Iterator[Entry]:
        raise ConflictError(
            f"{self.uri} is a web server, which cannot list files: give the URL of one archive instead."
        )

    def stat(self, key: str) -> Entry | None:
        if not key:
            return None
        try:
            return self._probe(key)[0]
        except _MissingError:
            return None

    def read(self, key: str) -> bytes:
        return self._retry(lambda: verified(lambda: self._read(key), self._name(key)))

    def _read(self, key: str) -> tuple[bytes, Checksum | None]:
        with _open_body(self._open(key, {})) as answer:
            return b"".join(self._body(answer, self._name(key))), stated_checksum(_headers(answer))

    def read_range(self, entry: Entry, start: int, end: int) -> bytes | None:
        if not self._probe(entry.key)[1]:
            return None if start or end > _FIRST_BYTES else self._retry(lambda: self._first_bytes(entry, end))
        return self._retry(lambda: b"".join(self._blocks(entry, start, end)))

    def _first_bytes(self, entry: Entry, end: int) -> bytes:
        """The start of an object from a server without ranges."""
        with closing(self._open(entry.key, {})) as answer:
            return next(self._body(answer, self._name(entry.key)), b"")[:end]

    def get(self, key: str, path: Path, **transfer: Unpack[Transfer]) -> Entry:
        source = RangeSource(self._name(key), lambda: self._probe(key), self._blocks)
        return download(source, path, self._options, **transfer)

    def put(self, key: str, source: Path | bytes, **conditions: Unpack[Conditions]) -> Entry:
        raise ConflictError(f"{self.uri} is read only: write to a folder or a bucket.")

    def delete(self, key: str) -> None:
        raise ConflictError(f"{self.uri} is read only: nothing can be deleted there.")

    def delete_drafts(self, selected: Callable[[str], bool]) -> None:
        """Does nothing: a store that is read only has none."""

    def address(self, key: str) -> str:
        """The web address of the object, without a login."""
        if path := re.split(r"[?#]", key, maxsplit=1)[0]:
            checked_key(path, self.uri)
        return quote(f"{self.uri}/{key}", safe=_SAFE)

    def _probe(self, key: str) -> tuple[Entry, bool, Checksum | None]:
        """The object's entry, whether it can be read in ranges that are certain to be of one version, and its checksum.

        Requests one byte: some servers and signed URLs refuse a HEAD, and some announce ranges that they do not serve.
        """

        def attempt() -> tuple[Entry, bool, Checksum | None]:
            with _open_body(self._open(key, {"Range": "bytes=0-0"}, may_be_empty=True)) as answer:
                size, version = _size(answer), _version(answer)
                ranged = answer.status == 206 and size != UNKNOWN_SIZE and version != ""
                return Entry(key, size, version), ranged, stated_checksum(_headers(answer))

        return self._retry(attempt)

    def _blocks(self, entry: Entry, start: int, end: int | None) -> Iterator[bytes]:
        """Blocks of the object, or of a range of a known version.

        Raises RetryableError for a broken body and for another answer than the one asked for, PreconditionFailed for
        another version.
        """
        name, span = self._name(entry.key), None if end is None or not entry.version else (start, end, entry.size)
        headers = {"Range": f"bytes={start}-{span[1] - 1}", **_if_unchanged(entry.version)} if span else {}
        with _open_body(self._open(entry.key, headers)) as answer:
            if span:
                require_range(name, answer.status, answer.headers.get("Content-Range", ""), span)
            _require_version(name, answer, entry.version)
            _require_length(name, answer, span, entry.size)
            yield from self._body(answer, name)

    def _body(self, answer: BaseHTTPResponse, name: str) -> Iterator[bytes]:
        try:
            while block := answer.read(BLOCK_SIZE):
                yield block
        except (OSError, HTTPError) as error:
            raise RetryableError(f"{name} broke off ({type(error).__name__})") from error
        if left := answer.length_remaining:  # None if the server does not report it
            raise RetryableError(f"{name} ended {left} bytes early")

    def _open(self, key: str, headers: dict[str, str], *, may_be_empty: bool = False) -> BaseHTTPResponse:
        answer = self._follow(self.address(key), headers)
        if 200 <= answer.status < 300:
            return answer
        _finish(answer)
        if may_be_empty and answer.status == 416:  # an empty object has no first byte
            return self._open(key, {})
        raise self._refused(answer, key, conditional=bool(headers) and not may_be_empty)

    def _retry(self, request: Callable[[], R]) -> R:
        return with_retries(request, self._options.retries, self.uri)

    def _follow(self, address: str, headers: dict[str, str]) -> BaseHTTPResponse:
        """The answer at the end of all redirects; the login goes to its own host only."""
        origin, name = urlsplit(address)[:2], without_secrets(address)
        for _ in range(_MOST_REDIRECTS + 1):
            login = {"Authorization": self._login} if self._login and urlsplit(address)[:2] == origin else {}
            try:
                answer = self._connections.get(address, {**headers, **login})
            except (OSError, HTTPError) as error:
                raise self._unreachable(error, name, address) from None
            target = answer.get_redirect_location()
            if not target:
                return answer
            _finish(answer)
            address = _redirected(address, target)
        raise ConflictError(f"{name} redirects more than {_MOST_REDIRECTS} times: check the address.")

    def _refused(self, answer: BaseHTTPResponse, key: str, conditional: bool) -> Exception:
        name, code = self._name(key), answer.status
        if code in (401, 403):
            return NoPermissionError(f"No permission for {name} (HTTP {code}): check the address and its signature.")
        if code in (404, 410):
            return _MissingError(f"{name} does not exist (HTTP {code}): check the address.")
        if conditional and code in _CHANGED:
            return PreconditionFailed(f"{name} changed (HTTP {code}).")
        if code in _RETRYABLE:
            return RetryableError(
                f"{name} was not served (HTTP {code})", wait_s=_seconds(answer.headers.get("Retry-After"))
            )
        return ConflictError(f"{name} was refused (HTTP {code}): check the address.")

    def _unreachable(self, error: Exception, name: str, address: str) -> Exception:
        """The job's exception for a request to `address` that got no answer."""
        cause = error.original_error if isinstance(error, ProxyError) else error
        if isinstance(cause, HTTPError) and cause.args and isinstance(cause.args[0], ssl.SSLError):
            cause = cause.args[0]
        host = f"The proxy for {host_of(address)}" if isinstance(error, ProxyError) else host_of(address)
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = cause.verify_message
            return ConflictError(f"The certificate of {host} is not trusted ({reason}): set SSL_CERT_FILE.")
        if isinstance(cause, LocationValueError):
            return ConflictError(f"{name} is not a valid address: check it.")
        if isinstance(cause, NameResolutionError):
            checked = "https_proxy" if cause is not error else self._options.flag
            what = f"The name of the host {host} can't be resolved for {name}"
            return RetryableError(what, f"check {checked} and the network", is_unresolved=True)
        what = f"{host} can't be reached for {name} ({type(cause).__name__})"
        return RetryableError(what, "check the network, or try again later")

    def _name(self, key: str) -> str:
        return without_secrets(f"{self.uri}/{key}")


class _MissingError(BadDataError):
    pass


@contextmanager
def _open_body(answer: BaseHTTPResponse) -> Iterator[BaseHTTPResponse]:
    """Closes the answer's connection after an error, or else leaves it for the next request."""
    try:
        yield answer
    except BaseException:
        answer.close()
        raise
    _finish(answer)


def _finish(answer: BaseHTTPResponse) -> None:
    """Read the rest of a short body, so that the connection can be used again, or else close it."""
    with suppress(OSError, HTTPError):
        if (answer.length_remaining or 0) <= _SHORT_BODY:
            answer.read(_SHORT_BODY)
    answer.close()


def _redirected(address: str, target: str) -> str:
    """The address that an answer redirects to. Raises ConflictError unless it is one of a web server."""
    try:
        parts = urlsplit(found := urljoin(address, quote(target.encode("latin-1", "replace"), safe=_SAFE)))
        valid = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        valid = False
    if not valid:
        source, shown = without_secrets(address), without_secrets(target)[:200]
        raise ConflictError(f"{source} redirects to {shown!r}, which is not https: check the address.")
    return found


def _headers(answer: BaseHTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers.itermerged()}


def _size(answer: BaseHTTPResponse) -> int:
    """The object's size, from Content-Range or from the length of a full answer."""
    if answer.status == 206:
        total = re.fullmatch(r"bytes [0-9]+-[0-9]+/([0-9]{1,19})", answer.headers.get("Content-Range", "").strip())
        return int(total[1]) if total else UNKNOWN_SIZE
    return UNKNOWN_SIZE if answer.length_remaining is None else answer.length_remaining


def _require_length(name: str, answer: BaseHTTPResponse, span: tuple[int, int, int] | None, size: int) -> None:
    """Raise RetryableError or, for a whole object, PreconditionFailed unless the body has the expected length."""
    if answer.length_remaining is None:
        return
    if span and answer.length_remaining != span[1] - span[0]:
        raise RetryableError(f"{name}: {answer.length_remaining} bytes came for {span[1] - span[0]}")
    if not span and (answer.status != 200 or size not in (UNKNOWN_SIZE, answer.length_remaining)):
        raise PreconditionFailed(f"{name} changed its size.")


def _version(answer: BaseHTTPResponse) -> str:
    return str(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")


def _require_version(name: str, answer: BaseHTTPResponse, version: str) -> None:
    """Raise RetryableError for an answer that does not tell its version, PreconditionFailed for another one."""
    if not version or _version(answer) == version:
        return
    header = "ETag" if version.startswith(('"', "W/")) else "Last-Modified"
    if not (answer.headers.get("ETag") or (header != "ETag" and _version(answer))):
        raise RetryableError(
            f"{name}: the answer has no {header}, though the first one had",
            "check for a proxy on the way, or try again later",
        )
    raise PreconditionFailed(f"{name} changed.")


def _if_unchanged(version: str) -> dict[str, str]:
    """The header that requires this version; a weak ETag never matches, so the answer's ETag is compared instead."""
    if version.startswith('"'):
        return {"If-Match": version}
    return {} if version.startswith("W/") else {"If-Unmodified-Since": version}


def _seconds(retry_after: str | None) -> float | None:
    """Retry-After in seconds; None if it is absent or malformed, 0 if it is in the past."""
    if retry_after is None:
        return None
    if re.fullmatch(r"\s*[0-9]{1,9}\s*", retry_after):
        return float(retry_after)
    try:
        moment = parsedate_to_datetime(retry_after)
        return max(0.0, (moment - moment.now(moment.tzinfo)).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
