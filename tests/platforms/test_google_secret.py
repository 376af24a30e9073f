"""The key of wandb from Google's Secret Manager: by the job's own login, into the environment and nowhere else."""

import json
import os
from collections.abc import Iterator

import pytest

from inat_job.errors import ConflictError, JobError, NoPermissionError, TransientError
from inat_job.job_settings import TrackerSettings
from inat_job.platforms.google_secret import read_secret
from inat_job.reporting.tracker_check import check_tracking
from inat_job.signals import never
from inat_job.storage import retry
from inat_job.telemetry.redact import redact
from tests.harness.google_secrets import TOKEN, TOKEN_PATH, Answer, GoogleSecrets, google_secrets, refusal

KEY = "k" * 40
NAME = "projects/my-project/secrets/wandb"
LATEST = f"{NAME}/versions/latest"


@pytest.fixture
def google(monkeypatch: pytest.MonkeyPatch) -> Iterator[GoogleSecrets]:
    """Google's services with the key; this process has none."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(retry, "_HOSTS", retry._Hosts())
    for name in ("http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("WANDB_API_KEY", "")  # which is restored
    with google_secrets() as google:
        google.secrets[LATEST] = KEY.encode()
        for name, value in google.environment.items():
            monkeypatch.setenv(name, value)
        yield google


@pytest.mark.parametrize(
    ("name", "version", "text"),
    [
        (NAME, LATEST, KEY),
        (NAME, LATEST, f"{KEY}\n"),
        (f"{NAME}/versions/3", f"{NAME}/versions/3", json.dumps({"WANDB_API_KEY": KEY})),
    ],
)
def test_key_is_read_with_the_jobs_login(
    name: str, version: str, text: str, google: GoogleSecrets, capfd: pytest.CaptureFixture[str]
) -> None:
    google.secrets = {version: text.encode()}
    check_tracking(TrackerSettings(mode="online", key_name=name), never)
    assert google.requests == [(TOKEN_PATH, ""), (f"/v1/{version}:access", f"Bearer {TOKEN}")]
    assert os.environ["WANDB_API_KEY"] == KEY
    assert redact(f"the key is {KEY}") == "the key is ***"
    logged = "".join(capfd.readouterr())
    assert (KEY in logged, TOKEN in logged) == (False, False)


DENIED = refusal(403, "PERMISSION_DENIED", "Permission 'secretmanager.versions.access' denied for resource.")
DISABLED = refusal(400, "FAILED_PRECONDITION", "Secret Version [x] is in DISABLED state.")


@pytest.mark.parametrize(
    ("kind", "answers", "error", "said"),
    [
        ("token", [(404, b"")], NoPermissionError, "has no login for this job (HTTP 404)"),
        ("token", [(403, b"IAM returned 403")], NoPermissionError, "has no login for this job (HTTP 403)"),
        ("token", [(503, b"")] * 6, TransientError, "gave no answer (HTTP 503) despite retries: run the job on Google"),
        ("token", [(200, b"<html>")] * 6, TransientError, "gave no answer"),
        ("token", [(200, b'{"access_token": "a\\nb"}')], TransientError, "gave no answer (no token)"),
        (
            "secret",
            [DENIED],
            NoPermissionError,
            "grant roles/secretmanager.secretAccessor. HTTP 403. Google says: P",
        ),
        ("secret", [(401, b"")], NoPermissionError, "HTTP 401."),
        ("secret", [DISABLED], ConflictError, "Google says: Secret Version [x] is in DISABLED state."),
        ("secret", [(404, b"[]")], ConflictError, "Google does not have this secret: check its name and version."),
        ("secret", [(503, b""), (429, b"")] * 3, TransientError, "gave no answer (HTTP"),
        ("secret", [(200, b"[]")] * 6, TransientError, "gave no answer (no JSON object)"),
        ("secret", [(200, b"{}")], ConflictError, "holds no text"),
        ("secret", [(200, b'{"payload": {"data": "/w=="}}')], ConflictError, "holds no text (UnicodeDecodeError)"),
        ("secret", [(200, b'{"payload": {"data": ""}}')], ConflictError, "neither a key nor a JSON object"),
    ],
)
def test_what_cannot_be_read_is_told_by_its_kind(
    kind: str, answers: list[Answer], error: type[JobError], said: str, google: GoogleSecrets
) -> None:
    google.faults[kind] = [*answers]
    with pytest.raises(error) as caught:
        check_tracking(TrackerSettings(mode="online", key_name=NAME), never)
    assert said in str(caught.value)
    assert (caught.value.exit_code, TOKEN in str(caught.value)) == (error.exit_code, False)
    assert os.environ["WANDB_API_KEY"] == ""


def test_missing_secret_costs_a_warning_unless_tracking_must_be_online(
    google: GoogleSecrets, capfd: pytest.CaptureFixture[str]
) -> None:
    google.secrets.clear()
    check_tracking(TrackerSettings(mode="auto", key_name=NAME), never)
    assert "--wandb-secret cannot be read, so the run is tracked offline. Google does not" in capfd.readouterr().out


def test_short_trouble_is_waited_out(google: GoogleSecrets) -> None:
    google.faults = {"token": [(503, b""), (500, b"")], "secret": [(429, b"")]}
    assert read_secret(NAME) == KEY
    assert len(google.requests) == 5


def test_metadata_server_is_asked_without_a_proxy(google: GoogleSecrets, monkeypatch: pytest.MonkeyPatch) -> None:
    """The double is the proxy too, which gets whole addresses."""
    monkeypatch.setenv("http_proxy", google.url)
    monkeypatch.setenv("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", "http://secrets.example")
    assert read_secret(NAME) == KEY
    assert [path for path, _ in google.requests] == [TOKEN_PATH, f"http://secrets.example/v1/{LATEST}:access"]


def test_token_does_not_follow_a_redirect(google: GoogleSecrets) -> None:
    with google_secrets() as other:
        google.moved_to = other.url
        with pytest.raises(NoPermissionError):
            read_secret(NAME)
        assert [login for _, login in other.requests] == [""]


@pytest.mark.parametrize("host", ["127.0.0.1:1", "x.invalid"])
def test_machine_without_googles_login_is_told_what_to_do(
    host: str, google: GoogleSecrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", host)
    with pytest.raises(TransientError, match="run the job on Google Cloud with a service account"):
        read_secret(NAME)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("GCE_METADATA_HOST", "a b"), ("CLOUDSDK_API_ENDPOINT_OVERRIDES_SECRETMANAGER", "file:///x")],
)
def test_wrong_address_is_a_conflict(
    variable: str, value: str, google: GoogleSecrets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConflictError, match=f"is no http or https address: check .*{variable}"):
        read_secret(NAME)
