"""Google's metadata server and Secret Manager on loopback, as their references describe them.

https://cloud.google.com/compute/docs/metadata/querying-metadata,
https://cloud.google.com/secret-manager/docs/reference/rest/v1/projects.secrets.versions/access
"""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from tests.harness import loopback

TOKEN_PATH = "/computeMetadata/v1/instance/service-accounts/default/token"
TOKEN = "ya29.pLaNtEdGoogleToken"

Answer = tuple[int, bytes]


@dataclass
class GoogleSecrets:
    """The secrets by the full names of their versions; `faults` are the next answers for `token` and `secret`.

    `requests` lists the target and the Authorization of each request; `moved_to` redirects those for a secret.
    """

    secrets: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Answer]] = field(default_factory=lambda: {"token": [], "secret": []})
    requests: list[tuple[str, str]] = field(default_factory=list)
    moved_to: str = ""
    url: str = ""

    @property
    def environment(self) -> dict[str, str]:
        return {
            "GCE_METADATA_HOST": urlsplit(self.url).netloc,
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER": f"{self.url}/",
        }


def refusal(code: int, status: str, message: str) -> Answer:
    """An error as Google's APIs write it."""
    return code, json.dumps({"error": {"code": code, "message": message, "status": status}}).encode()


class _Handler(loopback.Handler):
    google: GoogleSecrets

    def do_GET(self) -> None:
        google, path = self.google, urlsplit(self.path).path
        google.requests.append((self.path, self.headers.get("Authorization", "")))
        kind = "token" if path == TOKEN_PATH else "secret"
        if google.faults[kind]:
            return self.answer(*google.faults[kind].pop(0))
        if kind == "token":
            return self.answer(*self._token())
        if google.moved_to:
            return self.answer(302, b"", Location=google.moved_to + path)
        return self.answer(*self._secret(path.removeprefix("/v1/").removesuffix(":access")))

    def _token(self) -> Answer:
        if self.headers.get("Metadata-Flavor") != "Google":
            return 403, b"Missing Metadata-Flavor:Google header."
        return 200, json.dumps({"access_token": TOKEN, "expires_in": 3599, "token_type": "Bearer"}).encode()

    def _secret(self, name: str) -> Answer:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return refusal(401, "UNAUTHENTICATED", "Request had invalid authentication credentials.")
        if name not in self.google.secrets:
            return refusal(404, "NOT_FOUND", f"Secret [{name}] not found or has no versions.")
        data = base64.b64encode(self.google.secrets[name]).decode()
        return 200, json.dumps({"name": name, "payload": {"data": data, "dataCrc32c": "0"}}).encode()


@contextmanager
def google_secrets() -> Iterator[GoogleSecrets]:
    """Both services, for the block."""
    google = GoogleSecrets()
    with loopback.serve(type("Handler", (_Handler,), {"google": google})) as url:
        google.url = url
        yield google
