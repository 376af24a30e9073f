"""What is checked before work: wandb's server (on loopback, none, one that never answers), the key and its secret."""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from inat_job.errors import ConflictError, NoPermissionError, Preempted, TransientError, UsageError
from inat_job.job_settings import TrackerSettings
from inat_job.reporting import tracker_check
from inat_job.reporting.tracker_check import check_tracker, check_tracking
from inat_job.signals import never
from inat_job.telemetry.redact import redact
from tests.harness import loopback
from tests.harness.wandb_stub import wandb_server

KEY = "k" * 40


def test_check_names_the_account_of_the_key() -> None:
    with wandb_server() as (recorded, _):
        found = check_tracker("auto", recorded.url, True, KEY)
        assert (found.warning, "tester" in found.text) == ("", True)
        assert recorded.operations == ["Viewer"]
        assert check_tracker("online", recorded.url, True, None).text.startswith("online")  # by an identity token


def test_server_is_not_asked_unless_tracking_is_online() -> None:
    with wandb_server() as (recorded, _):
        assert check_tracker("off", recorded.url, True, KEY).text == "off"
        assert "offline" in check_tracker("offline", recorded.url, True, KEY).text
        assert "because there is no API key" in check_tracker("auto", recorded.url, False, None).text
        with pytest.raises(NoPermissionError, match="WANDB_API_KEY"):
            check_tracker("online", recorded.url, False, None)
        assert recorded.operations == []


@pytest.mark.parametrize(("status", "body"), [(401, b""), (200, b'{"data": {"viewer": null}}'), (200, b"<html>")])
def test_refused_key_is_a_warning_without_the_key(status: int, body: bytes) -> None:
    class Refusing(loopback.Handler):
        def do_POST(self) -> None:
            self.body()
            self.answer(status, body)

    with loopback.serve(Refusing) as url:
        found = check_tracker("auto", url, True, KEY)
    assert found.warning
    assert found.fix
    assert KEY not in repr(found)


def test_unreachable_or_silent_server_costs_little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_check, "_CHECK_TIMEOUT_S", 0.5)
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{held.getsockname()[1]}"
        assert "cannot be reached" in check_tracker("auto", address, True, KEY).warning
        held.listen()
        started = time.monotonic()
        assert "cannot be reached" in check_tracker("auto", address, True, KEY).warning
        assert time.monotonic() - started < 3


def test_missing_wandb_is_refused_or_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_check.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="not installed"):
        check_tracker("online", "http://127.0.0.1:1", True, KEY)
    assert check_tracker("auto", "http://127.0.0.1:1", True, KEY).text == "off"


@pytest.fixture
def secret(s3_endpoint: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Stores a text in moto's Secrets Manager and returns its ARN; this process has no key."""
    import boto3

    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("WANDB_API_KEY", "")  # which is restored
    client = boto3.session.Session().client("secretsmanager")
    return lambda text: str(client.create_secret(Name=f"wandb-{uuid.uuid4().hex}", SecretString=text)["ARN"])


@pytest.mark.parametrize("text", [KEY, f" {KEY}\n", json.dumps({"WANDB_API_KEY": KEY})])
def test_key_is_read_from_the_secret(
    text: str, secret: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    settings = TrackerSettings(mode="online", key_name=secret(text))
    check_tracking(settings, never)
    assert os.environ["WANDB_API_KEY"] == KEY
    assert redact(f"the key is {KEY}") == "the key is ***"
    assert KEY not in repr(settings) + "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "text",
    [None, "{}", "{", f"{KEY}\0", f"{KEY}\n{KEY}", "clé", json.dumps({"WANDB_API_KEY": 1}), json.dumps({"other": KEY})],
)
def test_secret_that_cannot_be_read_is_a_warning_or_an_error(
    text: str | None, secret: Callable[[str], str], capfd: pytest.CaptureFixture[str]
) -> None:
    arn = secret(text) if text else "arn:aws:secretsmanager:us-east-1:123456789012:secret:wandb-none"
    check_tracking(TrackerSettings(mode="auto", key_name=arn), never)
    logged = capfd.readouterr().out
    assert "--wandb-secret cannot be read, so the run is tracked offline." in logged
    with pytest.raises(ConflictError, match="--wandb-secret cannot be read") as caught:
        check_tracking(TrackerSettings(mode="online", key_name=arn), never)
    assert KEY not in logged + str(caught.value)
    assert os.environ["WANDB_API_KEY"] == ""


def test_secret_is_read_in_bounded_time(
    monkeypatch: pytest.MonkeyPatch, s3_endpoint: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracker_check, "_SECRET_TIMEOUT_S", 0.3)
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("WANDB_API_KEY", "")
    arn = "arn:aws:secretsmanager:us-east-1:123456789012:secret:wandb-a1B2c3"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        check_tracking(TrackerSettings(mode="auto", key_name=arn), never)
        with pytest.raises(TransientError):
            check_tracking(TrackerSettings(mode="online", key_name=arn), never)
        with pytest.raises(Preempted, match="reading the secret"):
            check_tracking(TrackerSettings(mode="auto", key_name=arn), lambda: True)
    assert time.monotonic() - started < 5
    assert "There was no answer within 0.3 s: try again later." in capfd.readouterr().out


@pytest.mark.parametrize(
    ("mode", "own_mode", "key"),
    [("auto", "disabled", ""), ("auto", "offline", ""), ("auto", "", KEY), ("online", "", KEY)],
)
def test_secret_is_not_read_without_need(mode: str, own_mode: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("WANDB_MODE", own_mode)
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setattr(tracker_check, "_secret", lambda arn: pytest.fail("it was read"))
    check_tracking(TrackerSettings(mode=mode, key_name="arn:aws:secretsmanager:us-east-1:123456789012:secret:x"), never)
    assert os.environ["WANDB_API_KEY"] == key


def test_key_in_place_of_a_secret_is_refused_and_not_shown() -> None:
    wrong_names = ("projects/1/secrets/", "projects/1/secrets/x/versions/", "projects/1/secrets/wandb?x")
    for wrong in (KEY, "arn:aws:iam::123456789012:role/x", *wrong_names):
        with pytest.raises(UsageError, match="--wandb-secret names no secret: write it as") as caught:
            TrackerSettings(key_name=wrong)
        assert wrong not in str(caught.value)
