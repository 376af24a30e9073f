"""cloud_login.py: whose login gs:// and az:// use, by variables, key files and the metadata server."""

import json
from pathlib import Path

import pytest

from inat_job.host.cloud_login import azure_login, google_login
from tests.harness import loopback

EMAIL = "trainer@project.iam.gserviceaccount.com"
KEY = json.dumps({"type": "service_account", "client_email": EMAIL, "private_key": "pLaNtEd"})
USER = json.dumps({"type": "authorized_user", "client_id": "1", "refresh_token": "pLaNtEd"})
NOWHERE = {"GCE_METADATA_HOST": "127.0.0.1:9"}


@pytest.mark.parametrize(
    "name",
    ["GOOGLE_SERVICE_ACCOUNT", "GOOGLE_SERVICE_ACCOUNT_PATH", "SERVICE_ACCOUNT", "GOOGLE_APPLICATION_CREDENTIALS"],
)
def test_service_account_of_a_key_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "key.json").write_text(KEY)
    assert google_login({name: str(tmp_path / "key.json")}) == f"{EMAIL}, from {name}"


def test_service_account_of_a_key_in_a_variable() -> None:
    token = {"GOOGLE_BEARER_TOKEN": "pLaNtEd", "GOOGLE_SERVICE_ACCOUNT_KEY": KEY}
    assert google_login(token) == "unknown: GOOGLE_BEARER_TOKEN names no owner"
    assert google_login({"GOOGLE_SERVICE_ACCOUNT_KEY": KEY}) == f"{EMAIL}, from GOOGLE_SERVICE_ACCOUNT_KEY"


@pytest.mark.parametrize(
    ("text", "owner"),
    [
        (USER, "a user of gcloud, whose name the login does not hold"),
        ("pLaNtEd", "unknown, as the key is no JSON"),
        ('["pLaNtEd"]', "unknown, as the key names no e-mail"),
        ('{"client_email": "pLaNtEd key"}', "unknown, as the key names no e-mail"),
        (None, "unknown, as the key cannot be read"),
    ],
)
def test_key_without_an_owner(text: str | None, owner: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "key.json").write_text(text)
    environment = {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json")}
    assert google_login(environment) == f"{owner}, from GOOGLE_APPLICATION_CREDENTIALS"


def test_login_of_gcloud(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), **NOWHERE}
    assert google_login(environment) == "unknown: there is no key file, nor does the machine tell it"
    file = tmp_path / ".config/gcloud/application_default_credentials.json"
    file.parent.mkdir(parents=True)
    file.write_text(USER)
    assert google_login(environment).startswith("a user of gcloud, ")


@pytest.mark.parametrize(
    ("status", "answer", "owner"),
    [(200, EMAIL, EMAIL), (200, "project.svc.id.goog", "project.svc.id.goog"), (200, "<p>", None), (404, EMAIL, None)],
)
def test_service_account_of_the_machine(status: int, answer: str, owner: str | None, tmp_path: Path) -> None:
    asked = []

    class Metadata(loopback.Handler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["Metadata-Flavor"]))
            self.answer(status, answer.encode())

    with loopback.serve(Metadata) as url:
        found = google_login({"HOME": str(tmp_path), "GCE_METADATA_HOST": url.removeprefix("http://")})
    assert found.startswith(f"{owner}, from the metadata server" if owner else "unknown: ")
    assert asked == [("/computeMetadata/v1/instance/service-accounts/default/email", "Google")]


CLIENT = {"AZURE_CLIENT_ID": "c1", "AZURE_TENANT_ID": "t1"}


@pytest.mark.parametrize(
    ("variables", "login"),
    [
        ({"AZURE_STORAGE_ACCOUNT_KEY": "pLaNtEd", **CLIENT, "AZURE_CLIENT_SECRET": "pLaNtEd"}, "its account key"),
        ({**CLIENT, "AZURE_CLIENT_SECRET": "pLaNtEd"}, "the secret of client c1 of tenant t1"),
        ({**CLIENT, "AZURE_FEDERATED_TOKEN_FILE": "/t"}, "the workload identity of client c1 of tenant t1"),
        ({"AZURE_STORAGE_SAS_TOKEN": "pLaNtEd"}, "a shared access signature"),
        ({"AZURE_STORAGE_TOKEN": "pLaNtEd"}, "a bearer token, whose owner is unknown"),
        ({"AZURE_USE_AZURE_CLI": "true"}, "the login of az, whose owner is unknown"),
        ({"AZURE_CLIENT_ID": "c1", "AZURE_USE_AZURE_CLI": "false"}, "a managed identity, client c1"),
        ({"DEFAULT_IDENTITY_CLIENT_ID": "c2"}, "a managed identity, client c2"),
        ({}, "a managed identity, whose name is unknown"),
    ],
)
def test_login_of_azure(variables: dict[str, str], login: str) -> None:
    assert azure_login(variables) == f"account unknown, by {login}"
    assert azure_login({"AZURE_STORAGE_ACCOUNT_NAME": "images", **variables}) == f"account images, by {login}"
