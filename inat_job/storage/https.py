"""A folder of a web server as a read-only store: the standard library's client, with retries and clear errors."""

import base64
import http.client
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Unpack
from urllib.parse import quote, unquote, urlsplit

from inat_job.errors import BadDataError, ConflictError, NoPermissionError, PreconditionFailed
from inat_job.storage.base import (
    UNKNOWN_SIZE,
    Conditions,
    Entry,
    StorageOptions,
    Transfer,
    checked_key,
    without_secrets,
)
from inat_job.storage.checksums import Checksum, stated_checksum
from inat_job.storage.ranged_download import BLOCK_SIZE, RangeSource, download, require_range, verified
from inat_job.storage.retry import RetryableError, with_retries

_TIMEOUT_S = 60.0
_RETRYABLE = frozenset({408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524})
_CHANGED = frozenset({412, 416})


class HttpsStore:
    """The files of a web server under `uri`. A key may have a query; messages and `uri` never do."""

    def __init__(self, uri: str, options: StorageOptions) -> None:
        self.uri = without_secrets(uri).rstrip("/")
        self._options = options
        self._login = _login(uri)

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
        return with_retries(lambda: verified(lambda: self._read(key), self._name(key)), self._options.retries)

    def _read(self, key: str) -> tuple[bytes, Checksum | None]:
        with closing(self._open(key, {})) as answer:
            return b"".join(self._body(answer, self._name(key))), stated_checksum(_headers(answer))

    def read_range(self, entry: Entry, start: int, end: int) -> bytes | None:
        if not self._probe(entry.key)[1]:
            return None
        return with_retries(lambda: b"".join(self._blocks(entry, start, end)), self._options.retries)

    def get(self, key: str, path: Path, **transfer: Unpack[Transfer]) -> Entry:
        source = RangeSource(self._name(key), lambda: self._probe(key), self._blocks)
        return download(source, path, self._options, **transfer)

    def put(self, key: str, source: Path | bytes, **conditions: Unpack[Conditions]) -> Entry:
        raise ConflictError(f"{self.uri} is read only: write to a folder or to s3://.")

    def delete(self, key: str) -> None:
        raise ConflictError(f"{self.uri} is read only: nothing can be deleted there.")

    def delete_drafts(self, selected: Callable[[str], bool]) -> None:
        """Does nothing: a store that is read only has none."""

    def address(self, key: str) -> str:
        """The web address of the object, without a login."""
        return self._request(key, {}).full_url

    def _probe(self, key: str) -> tuple[Entry, bool, Checksum | None]:
        """The object's entry, whether it can be read in ranges that are certain to be of one version, and its checksum.

        Requests one byte: some servers and signed URLs refuse a HEAD, and some announce ranges that they do not serve.
        """
        with closing(self._open(key, {"Range": "bytes=0-0"}, may_be_empty=True)) as answer:
            size, version = _size(answer), _version(answer)
            ranged = answer.status == 206 and size != UNKNOWN_SIZE and version != ""
            return Entry(key, size, version), ranged, stated_checksum(_headers(answer))

    def _blocks(self, entry: Entry, start: int, end: int | None) -> Iterator[bytes]:
        """Blocks of the object, or of a range of a known version.

        Raises RetryableError for a broken body and for another answer than the one asked for, PreconditionFailed for
        another version.
        """
        name, span = self._name(entry.key), None if end is None or not entry.version else (start, end, entry.size)
        headers = {"Range": f"bytes={start}-{span[1] - 1}", **_if_unchanged(entry.version)} if span else {}
        with closing(self._open(entry.key, headers)) as answer:
            if span:
                require_range(name, answer.status, answer.headers.get("Content-Range", ""), span)
            if entry.version and _version(answer) != entry.version:
                raise PreconditionFailed(f"{name} changed.")
            _require_length(name, answer, span, entry.size)
            yield from self._body(answer, name)

    def _body(self, answer: http.client.HTTPResponse, name: str) -> Iterator[bytes]:
        left = answer.length  # None if the server does not report it
        try:
            while block := answer.read(BLOCK_SIZE):
                left = None if left is None else left - len(block)
                yield block
        except (OSError, http.client.HTTPException) as error:
            raise RetryableError(
                f"{name} broke off ({type(error).__name__}) despite retries: try again later."
            ) from error
        if left:
            raise RetryableError(f"{name} ended {left} bytes early despite retries: try again later.")

    def _open(self, key: str, headers: dict[str, str], *, may_be_empty: bool = False) -> http.client.HTTPResponse:
        request = self._request(key, headers)

        def attempt() -> http.client.HTTPResponse:
            try:
                opener = urllib.request.build_opener(_Redirects)
                return opener.open(request, timeout=_TIMEOUT_S)  # type: ignore[no-any-return]
            except urllib.error.HTTPError as error:
                with closing(error):
                    if may_be_empty and error.code == 416:  # an empty object has no first byte
                        return self._open(key, {})
                    raise self._refused(error, key, conditional=bool(headers) and not may_be_empty) from None
            except (OSError, http.client.HTTPException, ValueError) as error:
                raise self._unreachable(error, key) from None

        return with_retries(attempt, self._options.retries)

    def _request(self, key: str, headers: dict[str, str]) -> urllib.request.Request:
        checked_key(re.split(r"[?#]", key, maxsplit=1)[0], self.uri)
        address = quote(f"{self.uri}/{key}", safe="%/:?=&+,;@!$'()*~#[]")
        # identity: the length and the ranges are the object's only if the body is not compressed
        request = urllib.request.Request(address, headers={"Accept-Encoding": "identity", **headers})  # noqa: S310
        if self._login:
            request.add_unredirected_header("Authorization", self._login)
        return request

    def _refused(self, error: urllib.error.HTTPError, key: str, conditional: bool) -> Exception:
        name, code = self._name(key), error.code
        if code in (401, 403):
            return NoPermissionError(f"No permission for {name} (HTTP {code}): check the address and its signature.")
        if code in (404, 410):
            return _MissingError(f"{name} does not exist (HTTP {code}): check the address.")
        if conditional and code in _CHANGED:
            return PreconditionFailed(f"{name} changed (HTTP {code}).")
        if code in _RETRYABLE:
            message = f"{name} was not served (HTTP {code}) despite retries: try again later."
            return RetryableError(message, _seconds(error.headers.get("Retry-After")))
        return ConflictError(f"{name} was refused (HTTP {code}): check the address.")

    def _unreachable(self, error: Exception, key: str) -> Exception:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(reason, ssl.SSLCertVerificationError):
            return ConflictError(f"The certificate of {urlsplit(self.uri).netloc} is not trusted: set SSL_CERT_FILE.")
        if isinstance(error, ValueError):
            return ConflictError(f"{self._name(key)} is not a valid address: check it.")
        return RetryableError(
            f"{urlsplit(self.uri).netloc} can't be reached for {self._name(key)} ({type(reason).__name__}) "
            "despite retries: check the network, or try again later."
        )

    def _name(self, key: str) -> str:
        return without_secrets(f"{self.uri}/{key}")


class _MissingError(BadDataError):
    pass


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: urllib.request.Request, *answer: Any) -> urllib.request.Request | None:
        if urlsplit(answer[-1]).scheme not in ("http", "https"):  # the library follows ftp too
            source, target = without_secrets(req.full_url), without_secrets(answer[-1])
            raise ConflictError(f"{source} redirects to {target!r}, which is not https: check the address.")
        return super().redirect_request(req, *answer)


def _login(uri: str) -> str | None:
    parts = urlsplit(uri)
    if parts.username is None:
        return None
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode()


def _headers(answer: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): ", ".join(answer.headers.get_all(name, [])) for name in answer.headers}


def _size(answer: http.client.HTTPResponse) -> int:
    """The object's size, from Content-Range or from the length of a full answer."""
    if answer.status == 206:
        total = re.fullmatch(r"bytes [0-9]+-[0-9]+/([0-9]{1,19})", answer.headers.get("Content-Range", "").strip())
        return int(total[1]) if total else UNKNOWN_SIZE
    return UNKNOWN_SIZE if answer.length is None else answer.length


def _require_length(name: str, answer: http.client.HTTPResponse, span: tuple[int, int, int] | None, size: int) -> None:
    """Raise RetryableError or, for a whole object, PreconditionFailed unless the body has the expected length."""
    if answer.length is None:
        return
    if span and answer.length != span[1] - span[0]:
        raise RetryableError(f"{name}: {answer.length} bytes came for {span[1] - span[0]}: try again later.")
    if not span and (answer.status != 200 or size not in (UNKNOWN_SIZE, answer.length)):
        raise PreconditionFailed(f"{name} changed its size.")


def _version(answer: http.client.HTTPResponse) -> str:
    return str(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "")


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
