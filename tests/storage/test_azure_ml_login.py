"""The login of az:// on Azure Machine Learning, against a loopback service of tokens that also holds the blobs."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

import pytest

from inat_job.errors import JobError, NoPermissionError, TransientError
from inat_job.storage import StorageOptions, open_store
from inat_job.storage.azure_ml_login import token_provider
from tests.harness import loopback

SECRET, TOKEN = "topsecret", "tokenofidentity"
NO_RETRIES = StorageOptions(retries=0)


@dataclass
class AzureMl:
    """Serves the blob `k` to who has the token, and the token to who has the secret; `refusal` is its other answer."""

    refusal: tuple[int, bytes] | None = None
    queries: list[dict[str, list[str]]] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)


class _Handler(loopback.Handler):
    service: AzureMl

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        status, body = self._token(parts.query) if parts.path == "/MSI/auth" else self._blob()
        self.answer(status, body, ETag='"1"', Last_Modified="Sun, 01 Nov 2026 10:00:00 GMT")

    def _token(self, query: str) -> tuple[int, bytes]:
        self.service.queries.append(parse_qs(query))
        if self.service.refusal:
            return self.service.refusal
        if self.headers.get("secret") != SECRET:
            return 401, b""
        expires = int(time.time()) + 3600
        return 200, json.dumps({"access_token": TOKEN, "expires_on": str(expires)}).encode()

    def _blob(self) -> tuple[int, bytes]:
        self.service.logins.append(self.headers.get("Authorization", ""))
        return (200, b"hello") if self.service.logins[-1] == f"Bearer {TOKEN}" else (403, b"")


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[AzureMl]:
    """The service, in the environment as Azure Machine Learning puts it there."""
    pytest.importorskip("obstore")
    service = AzureMl()
    with loopback.serve(type("Handler", (_Handler,), {"service": service})) as url:
        monkeypatch.setenv("MSI_ENDPOINT", f"{url}/MSI/auth")
        monkeypatch.setenv("MSI_SECRET", SECRET)
        monkeypatch.setenv("DEFAULT_IDENTITY_CLIENT_ID", "default-identity")
        monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "account")
        monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", f"{url}/account")
        monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_KEY", raising=False)
        yield service


@pytest.mark.parametrize(("chosen", "identity"), [("", "default-identity"), ("mine", "mine")])
def test_blob_is_read_with_a_token_of_the_identity(
    chosen: str, identity: str, service: AzureMl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AZURE_CLIENT_ID", chosen)
    store = open_store("az://c", NO_RETRIES)
    assert [store.read("k"), store.read("k")] == [b"hello"] * 2
    query = {"api-version": ["2017-09-01"], "resource": ["https://storage.azure.com/"], "clientid": [identity]}
    assert service.queries == [query], "one token serves both"


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [((400, b""), NoPermissionError), ((403, b""), NoPermissionError), ((500, b""), TransientError)]
    + [((200, body), TransientError) for body in (b"<html>", b"[]", b'{"access_token": "x", "expires_on": "soon"}')],
)
def test_refused_token_is_told_by_its_kind(refusal: tuple[int, bytes], kind: type[JobError], service: AzureMl) -> None:
    service.refusal = refusal
    with pytest.raises(kind, match="managed identity") as caught:
        open_store("az://c", NO_RETRIES).read("k")
    assert (caught.value.exit_code, SECRET in str(caught.value)) == (kind.exit_code, False)
    assert service.logins == []


def test_token_is_not_asked_for_through_a_proxy(service: AzureMl, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    provider = token_provider()
    assert provider is not None
    assert provider()["token"] == TOKEN


def test_other_login_comes_first() -> None:
    here = {"MSI_ENDPOINT": "http://127.0.0.1:1/MSI/auth", "MSI_SECRET": "x", "AZUREML_RUN_TOKEN": "x"}
    assert token_provider(here) is not None
    assert token_provider({**here, "AZURE_STORAGE_ACCOUNT_KEY": ""}) is not None
    for name in ("STORAGE_ACCOUNT_KEY", "STORAGE_SAS_TOKEN", "CLIENT_SECRET", "FEDERATED_TOKEN_FILE"):
        assert token_provider({**here, f"AZURE_{name}": "x"}) is None
    assert token_provider({"MSI_ENDPOINT": "http://127.0.0.1:1/MSI/auth"}) is None, "of Cloud Shell"
