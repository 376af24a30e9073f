"""What obstore's errors mean to the job: by the status and the code of the server's answer, which obstore quotes.

Its texts are never shown, because they hold addresses, which may be signed.
"""

import re
from dataclasses import dataclass

from inat_job.errors import BadDataError, ConflictError, NoPermissionError, PreconditionFailed
from inat_job.storage.retry import RetryableError

_STATUS = re.compile(r"status code: (\d{3})\b|\(code: (\d{3})\)")
_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound"})
_TRANSIENT = frozenset({408, 425, 429})
_FAILED = ("AlreadyExistsError", "PreconditionError", "NotModifiedError")
_LOGINS = {
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or give the job a service account",
    "az": "set AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_SAS_TOKEN, or give the job a managed identity",
}
_SETTINGS = {
    "gs": "GOOGLE_APPLICATION_CREDENTIALS and the other GOOGLE_* variables",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and the other AZURE_* variables",
}


@dataclass(frozen=True)
class Bucket:
    """Where an error happened, and whether the job writes its output there."""

    scheme: str
    name: str
    output: bool

    @property
    def uri(self) -> str:
        return f"{self.scheme}://{self.name}"


def bad_setting(error: Exception, bucket: Bucket) -> Exception:
    """The job's exception for a store that can't be made."""
    if "Account must be specified" in str(error):
        return ConflictError(f"The storage account of {bucket.uri} is not known: set AZURE_STORAGE_ACCOUNT_NAME.")
    kind = type(error).__name__
    return ConflictError(f"The login for {bucket.uri} can't be used ({kind}): check {_SETTINGS[bucket.scheme]}.")


def translate(error: Exception, bucket: Bucket, full: str, writing: bool, conditional: bool) -> Exception:
    """The job's exception for obstore's, in a request for the object or prefix `full`."""
    text, uri = str(error), f"{bucket.uri}/{full}".rstrip("/")
    found = _STATUS.search(text)
    status, code = int(found[1] or found[2]) if found else 0, _CODE.search(text)
    reason = code[1] if code else f"HTTP {status}" if status else type(error).__name__
    if any(part in text for part in ("token request", "credential error", "credential provider")):
        return _no_login(bucket, uri, status, reason)
    if code and code[1] in _NO_BUCKET:
        return _no_bucket(bucket, uri, writing)
    if isinstance(error, FileNotFoundError) or status == 404:
        return BadDataError(f"{uri} does not exist: check the address.")
    if conditional and (type(error).__name__ in _FAILED or status == 412):
        return PreconditionFailed(f"{uri} does not meet the condition ({reason}).")
    if status in (401, 403):
        return NoPermissionError(
            f"No permission for {uri} ({reason}): check the login, its roles and this machine's clock."
        )
    if status in _TRANSIENT or status >= 500:
        return RetryableError(f"{uri} was not served ({reason})")
    return ConflictError(f"{uri} was refused ({reason}): check the address.") if status else _unanswered(text, uri)


def _no_bucket(bucket: Bucket, uri: str, writing: bool) -> Exception:
    if bucket.output or writing:
        return ConflictError(f"Output bucket {bucket.uri} does not exist: create it or change --output.")
    return BadDataError(f"Bucket {bucket.uri} of {uri} does not exist: check the address.")


def _no_login(bucket: Bucket, uri: str, status: int, reason: str) -> Exception:
    """A pod's metadata server may need some seconds until it answers."""
    if 400 <= status < 500 and status not in _TRANSIENT:
        return NoPermissionError(f"No usable login for {uri} ({reason}): {_LOGINS[bucket.scheme]}.")
    return RetryableError(f"No login service answers for {uri}", _LOGINS[bucket.scheme], is_unresolved=True)


def _unanswered(text: str, uri: str) -> Exception:
    """For a request without an answer; the causes are in the debugging part of the text."""
    if "parse path" in text or "invalid path" in text:
        return BadDataError(f"A key at {uri} has a part that is empty, . or ..: rename it, or give another address.")
    if "certificate" in text.lower():
        return ConflictError(f"The certificate of the server of {uri} is not trusted: set SSL_CERT_FILE, or check it.")
    unresolved = "dns error" in text
    what = f"The name of the host of {uri} can't be resolved" if unresolved else f"The server of {uri} does not answer"
    return RetryableError(what, "check the network, or try again later", is_unresolved=unresolved)
