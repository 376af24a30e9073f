"""A secret in Google's Secret Manager, read with the job's own identity: the service account of its machine or pod."""

import base64
import http.client
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from inat_job.address import host_of, without_login
from inat_job.errors import ConflictError, JobError, NoPermissionError
from inat_job.host import environment
from inat_job.storage.disk import parse_json
from inat_job.storage.retry import RetryableError, with_retries
from inat_job.telemetry.redact import redact

_TOKEN_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"  # noqa: S105
_RETRIES = 5  # about 5 s in all: the metadata server of a new pod needs some seconds until it answers
_TIMEOUT_S = 4.0
_MOST_BYTES = 2**20  # a secret has up to 64 KiB
_MESSAGE_LENGTH = 300  # characters of Google's own message that are shown
_TRANSIENT = frozenset({408, 425, 429})
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_LOGIN_FIX = "run the job on Google Cloud with a service account, or set WANDB_API_KEY"


def read_secret(name: str) -> str:
    """The text of `projects/P/secrets/S`, in its newest version unless `/versions/V` follows. Raises JobError.

    https://cloud.google.com/secret-manager/docs/reference/rest/v1/projects.secrets.versions/access
    """
    version = name if "/versions/" in name else f"{name}/versions/latest"
    url = f"{environment.secret_manager()}/v1/{version}:access"
    token = _token()
    payload = _answer(urllib.request.build_opener(), url, {"Authorization": f"Bearer {token}"}).get("payload")
    try:
        return base64.b64decode(payload["data"], validate=True).decode()  # type: ignore[index]
    except (TypeError, KeyError, ValueError) as error:
        raise ConflictError(f"{name} holds no text ({type(error).__name__}): store the key as its text.") from None


def _token() -> str:
    """https://cloud.google.com/compute/docs/access/authenticate-workloads#applications; never through a proxy."""
    url = f"http://{environment.google_metadata_host()}{_TOKEN_PATH}"
    token = _answer(_DIRECT, url, {"Metadata-Flavor": "Google"}).get("access_token")
    if not isinstance(token, str) or not token.isascii() or not token.isprintable():
        raise _unanswered(url, "no token")
    return token


def _answer(opener: urllib.request.OpenerDirector, url: str, headers: Mapping[str, str]) -> dict[str, Any]:
    """The JSON object at `url`; the headers are not sent on to where it redirects."""

    def ask() -> dict[str, Any]:
        try:
            if not url.startswith(("http://", "https://")):
                raise http.client.InvalidURL
            request = urllib.request.Request(url)  # noqa: S310
            for name, value in headers.items():
                request.add_unredirected_header(name, value)
            with closing(opener.open(request, timeout=_TIMEOUT_S)) as answer:
                found = parse_json(answer.read(_MOST_BYTES))
        except urllib.error.HTTPError as error:
            with closing(error):
                raise _refused(url, error) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _unreachable(url, error) from None
        if not isinstance(found, dict):
            raise _unanswered(url, "no JSON object")
        return found

    return with_retries(ask, _RETRIES, url)


def _refused(url: str, error: urllib.error.HTTPError) -> JobError:
    code = error.code
    if code in _TRANSIENT or code >= 500:
        return _unanswered(url, f"HTTP {code}")
    if url.endswith(_TOKEN_PATH):
        return NoPermissionError(f"Google's metadata server has no login for this job (HTTP {code}): {_LOGIN_FIX}.")
    said = f"HTTP {code}.{_said(error)}"
    if code in (401, 403):
        return NoPermissionError(f"No permission to read the secret: grant roles/secretmanager.secretAccessor. {said}")
    return ConflictError(f"Google does not have this secret: check its name and version. {said}")


def _said(error: urllib.error.HTTPError) -> str:
    """Google's own message."""
    try:
        message = str(parse_json(error.read(_MOST_BYTES))["error"]["message"])
    except (OSError, http.client.HTTPException, ValueError, TypeError, LookupError):
        return ""
    return f" Google says: {redact(' '.join(message.split()))[:_MESSAGE_LENGTH]}"


def _unreachable(url: str, error: Exception) -> JobError:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return ConflictError(f"The certificate of {host_of(url)} is not trusted: set SSL_CERT_FILE.")
    if isinstance(error, http.client.InvalidURL):
        fix = f"check GCE_METADATA_HOST and {environment.SECRET_MANAGER}"
        return ConflictError(f"{without_login(url)!r} is no http or https address: {fix}.")
    return _unanswered(url, type(cause).__name__, is_unresolved=isinstance(cause, socket.gaierror))


def _unanswered(url: str, why: str, *, is_unresolved: bool = False) -> RetryableError:
    fix = _LOGIN_FIX if url.endswith(_TOKEN_PATH) else "check the network, or try again later"
    return RetryableError(f"{host_of(url)} gave no answer ({why})", fix, is_unresolved=is_unresolved)
