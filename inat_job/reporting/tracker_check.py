"""How a run will be tracked, found out before any work, without importing a tracker."""

import base64
import http.client
import importlib.util
import json
import time
import urllib.error
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from typing import Literal

from inat_job import events, signals
from inat_job.address import host_of
from inat_job.errors import ConflictError, JobError, NoPermissionError, Preempted, TransientError, UsageError
from inat_job.host import environment
from inat_job.job_settings import TrackerSettings
from inat_job.signals import Stop
from inat_job.storage.disk import parse_json
from inat_job.storage.threads import run_in_thread

Mode = Literal["auto", "online", "offline", "off"]

_CHECK_TIMEOUT_S, _SECRET_TIMEOUT_S = 4.0, 10.0

_KEY = "WANDB_API_KEY"

_PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny"}
"""What pip installs for --tracker."""


def check_tracking(settings: TrackerSettings, stop: Stop) -> None:
    """Read the key of --wandb-secret, and refuse, before any work, what cannot be.

    Raises NoPermissionError without a key, ConflictError for --tracker, Preempted, and with `--wandb online` also what
    reading the secret raises.
    """
    _read_key(settings, stop)
    _require_key(settings.mode, environment.has_wandb_key())
    for name in settings.loggers:
        if not _is_found(name):
            package = _PACKAGES[name]
            raise ConflictError(
                f"--tracker {name} needs {package}, which is not installed: pip install {package}, build the image "
                f"with --build-arg EXTRAS={name}, or leave it out."
            )
    if "mlflow" in settings.loggers and not environment.mlflow_server():
        raise ConflictError(
            "--tracker mlflow needs an address: set MLFLOW_TRACKING_URI, such as to http://host:5000, or leave it out."
        )


def _read_key(settings: TrackerSettings, stop: Stop) -> None:
    """Set the key for wandb in this process and those that it starts, unless there is one or none is needed."""
    if settings.key_name is None or environment.has_wandb_key():
        return
    if environment.wandb_mode(settings.mode) not in ("auto", "online"):
        return
    try:
        key = _secret_in_time(settings.key_name, stop)
    except Preempted:
        raise
    except JobError as error:
        kind = TransientError if isinstance(error, TransientError) else type(error)
        if settings.mode == "online":
            raise kind(f"--wandb-secret cannot be read. {error}") from error
        events.warn(f"--wandb-secret cannot be read, so the run is tracked offline. {error}")
    else:
        environment.set_variables({_KEY: key})


def _secret_in_time(name: str, stop: Stop) -> str:
    """The key, within a limit of time. Raises Preempted and what reading raises."""
    until = time.monotonic() + _SECRET_TIMEOUT_S

    def tick() -> None:
        signals.check(stop, "reading the secret")
        if time.monotonic() > until:
            raise TransientError(f"There was no answer within {_SECRET_TIMEOUT_S:g} s: try again later.")

    return run_in_thread(lambda _: _secret(name), tick)


def _secret(name: str) -> str:
    """The key in the secret of AWS or Google, which is its text or a value of its JSON object."""
    module = "aws.aws_secret" if name.startswith("arn:") else "google_secret"  # boto3 loads slowly
    text = str(importlib.import_module(f"inat_job.platforms.{module}").read_secret(name)).strip()
    try:
        value = json.loads(text) if text.startswith("{") else {_KEY: text}
    except ValueError:
        value = {}
    key = value.get(_KEY)
    if not isinstance(key, str) or not key.isascii() or not key.isprintable() or not key:
        raise ConflictError(f"The secret is neither a key nor a JSON object with {_KEY}: store the key as its text.")
    return key


def _is_found(package: str) -> bool:
    found = importlib.util.find_spec(package)
    return bool(found and found.origin)  # None for a folder of that name, as offline runs of wandb leave behind


def mode_of_run(mode: Mode, has_key: bool) -> Mode:
    """How a run is tracked: "auto" is online with a key and offline without, and off where wandb is not installed.

    Raises UsageError if another mode is asked for and wandb is not installed, NoPermissionError for "online" without a
    key.
    """
    wanted: Mode = ("online" if has_key else "offline") if mode == "auto" else mode
    if wanted == "off" or not _is_installed(mode):
        return "off"
    _require_key(mode, has_key)
    return wanted


def _require_key(mode: str, has_key: bool) -> None:
    """Raise NoPermissionError where the run is to be tracked online and cannot be."""
    if mode == "online" and not has_key:
        raise NoPermissionError(
            "--wandb online needs an API key: set WANDB_API_KEY or run wandb login, or use --wandb offline."
        )


def _is_installed(mode: Mode) -> bool:
    """Whether wandb can be imported. Raises UsageError if it cannot and `mode` is not "auto"."""
    if _is_found("wandb"):
        return True
    if mode != "auto":
        raise UsageError(
            f"--wandb {mode} needs the package wandb, which is not installed: install it, or use --wandb off."
        )
    events.warn("The tracker is off, because the package wandb is not installed.")
    return False


_VIEWER = json.dumps({"query": "query Viewer { viewer { username entity } }"}).encode()


@dataclass(frozen=True)
class TrackerCheck:
    """How a run will be tracked or, in `warning` and `fix`, why it will only be tracked offline."""

    text: str
    warning: str = ""
    fix: str = ""


def check_tracker(mode: Mode, server: str, has_key: bool, key: str | None) -> TrackerCheck:
    """Find out within a few seconds how a run would be tracked; `server` is the URL of wandb's server.

    Raises as `mode_of_run` does.
    """
    wanted = mode_of_run(mode, has_key)
    if wanted == "off":
        return TrackerCheck("off")
    if wanted == "offline":
        return TrackerCheck("offline, in the run folder" + (", because there is no API key" if mode == "auto" else ""))
    return _ask_server(server, key)


def _offline(why: str, fix: str) -> TrackerCheck:
    return TrackerCheck("", f"{why}, so the run will be tracked offline", fix)


def _ask_server(server: str, key: str | None) -> TrackerCheck:
    host = host_of(server)
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()
    try:
        request = urllib.request.Request(f"{server}/graphql", _VIEWER, headers)  # noqa: S310
        with closing(urllib.request.urlopen(request, timeout=_CHECK_TIMEOUT_S)) as answer:  # noqa: S310
            viewer = (parse_json(answer.read(2**20)).get("data") or {}).get("viewer")
    except urllib.error.HTTPError as error:
        error.close()
        viewer, refused = None, f"{host} answered HTTP {error.code}"
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
        return _offline(f"{host} cannot be reached ({type(error).__name__})", "check the network")
    else:
        refused = f"{host} does not know the key"
    if key and not viewer:
        return _offline(refused, "check WANDB_API_KEY and WANDB_BASE_URL")
    account = f", as {viewer.get('entity') or viewer.get('username')}" if isinstance(viewer, dict) else ""
    return TrackerCheck(f"online at {host}{account}")
