"""The experiment tracker. This is the only module that imports wandb.

Tracking never fails or delays the job: where wandb is missing, unreachable or slow, an online run becomes an offline
one that one command uploads later.
"""

import base64
import contextlib
import http.client
import importlib.util
import json
import re
import shlex
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from inat_job import events
from inat_job.errors import UsageError
from inat_job.telemetry.redact import redact

Mode = Literal["auto", "online", "offline", "off"]

STEP = "trainer/step"
"""The metric that is every chart's x axis. wandb's own step may only grow, but a resumed run repeats steps."""

FINISH_TIMEOUT_S = 10.0
"""How long the end of a run may wait for its upload: less than a preempted container's grace."""

_TEARDOWN_TIMEOUT_S = 3.0

_REFUSED_IN_ID = re.compile(r"[^A-Za-z0-9._-]")


class Tracker(Protocol):
    """Where metrics go; nothing here raises for the tracker's own troubles."""

    mode: str
    """"online", "offline" or "off": what it really is, after any fallback."""
    run_id: str | None
    url: str | None

    sync_command: str | None
    """Uploads what lies only in the run folder; None where nothing does, as far as is known."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics of a step, which may repeat."""

    def summary(self, values: Mapping[str, object]) -> None:
        """Record a run's final values by name."""

    def preempting(self) -> None:
        """Say that the run is stopped from outside and will go on; `finish` follows with another code than 0."""

    def finish(self, exit_code: int) -> None:
        """End the run, failed unless `exit_code` is 0, in bounded time."""


@dataclass(frozen=True)
class _Start:
    """What wandb.init is asked for."""

    run_id: str
    project: str
    entity: str | None
    folder: Path
    config: Mapping[str, object]
    timeout_s: float

    def folders(self) -> set[Path]:
        """What wandb keeps of this run's attempts, online or offline."""
        return set((self.folder / "wandb").glob(f"*run-*-{self.run_id}*"))


def open_tracker(
    mode: Mode,
    *,
    run_id: str,
    project: str,
    entity: str | None,
    folder: Path,
    config: Mapping[str, object],
    has_key: bool,
    init_timeout_s: float = 5,
) -> Tracker:
    """Start or resume the run `run_id`, whose files go to `folder`/wandb.

    "auto" is online with a key and else offline. Raises UsageError when wandb is asked for by name and not installed.
    """
    wanted = ("online" if has_key else "offline") if mode == "auto" else mode
    if wanted == "off" or not is_installed(mode):
        return _Run(None, "off")
    if wanted == "online" and not has_key:
        events.warn("The tracker stays offline for want of an API key: set WANDB_API_KEY, or run wandb login.")
        wanted = "offline"
    start = _Start(_REFUSED_IN_ID.sub("-", run_id), project, entity, folder.resolve(), config, init_timeout_s)
    online = _started("online", start) if wanted == "online" else None
    return online or _started("offline", start) or _Run(None, "off")


def is_installed(mode: Mode) -> bool:
    """Whether wandb can be imported. Raises UsageError where it can't and `mode` asks for it by name."""
    found = importlib.util.find_spec("wandb")
    if found and found.origin:  # a mere folder of that name, which offline runs leave behind, has none
        return True
    if mode != "auto":
        raise UsageError(f"--wandb {mode} needs the package wandb, which is not installed: install it, or say off.")
    events.warn("The tracker is off, because the package wandb is not installed.")
    return False


def _started(mode: Literal["online", "offline"], start: _Start) -> Tracker | None:
    """A running tracker, or None and a warning where it cannot be had in this mode."""
    before = start.folders()
    try:
        tracker = _Run(_init(mode, start), mode)
    except Exception as error:  # whatever it is, the job is worth more than its tracker
        _teardown()
        for debris in start.folders() - before:
            shutil.rmtree(debris, ignore_errors=True)
        instead = "offline" if mode == "online" else "off"
        events.warn(f"The tracker could not start {mode} and is {instead}.", reason=_one_line(error))
        return None
    events.emit("tracker", mode=mode, run_id=tracker.run_id, url=tracker.url)
    return tracker


def _init(mode: Literal["online", "offline"], start: _Start) -> Any:
    """wandb's run. Raises what wandb raises, within 10 s of the time-out."""
    import wandb

    (start.folder / "wandb").mkdir(parents=True, exist_ok=True)  # wandb itself would silently take /tmp instead
    wandb.setup(_settings(start.timeout_s))  # here and not in init, which logs in, and says so, before it reads any
    run = wandb.init(
        mode=mode,
        id=start.run_id,
        name=start.run_id,
        resume="allow",
        project=start.project,
        entity=start.entity,
        dir=str(start.folder),
        config=dict(start.config),
    )
    run.define_metric(STEP, hidden=True)
    run.define_metric("*", step_metric=STEP)
    return run


def _settings(timeout_s: float) -> Any:
    import wandb

    return wandb.Settings(
        init_timeout=timeout_s,
        finish_timeout=FINISH_TIMEOUT_S,
        finish_timeout_raises=True,
        # Tried again once and soon: these also bound the start. An upload under way has its own, longer patience.
        x_graphql_retry_max=1,
        x_graphql_retry_wait_min_seconds=0.2,
        x_graphql_retry_wait_max_seconds=0.5,
        x_graphql_timeout_seconds=max(1.0, 0.6 * timeout_s),
        # The job says itself what it does, and nothing of the machine or the code is told.
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        # Where and what the run is, is decided by the job alone.
        use_dot_wandb=False,
        symlink=False,
        sagemaker_disable=True,
    )


class _Run:
    """A run of wandb's, or none, that cannot fail the job: each call is tried, and the first error is told."""

    def __init__(self, run: Any, mode: str) -> None:
        self._run, self.mode = run, mode
        self.run_id: str | None = run and run.id
        self.url: str | None = run.url if mode == "online" else None
        self._folder = Path(run.settings.sync_dir if run else "")
        self._upload = f"wandb sync {shlex.quote(str(self._folder))}"
        self.sync_command = self._upload if mode == "offline" else None
        self._failed = False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._try(lambda run: run.log({**metrics, STEP: step}))

    def summary(self, values: Mapping[str, object]) -> None:
        self._try(lambda run: run.summary.update(dict(values)))

    def preempting(self) -> None:
        self._try(lambda run: run.mark_preempting())

    def finish(self, exit_code: int) -> None:
        if self._run is None:
            return
        self._try(lambda run: _within(FINISH_TIMEOUT_S + 2, lambda: run.finish(exit_code=exit_code)))
        self._run = None
        _teardown()
        if self.mode == "online" and not self._failed:
            shutil.rmtree(self._folder, ignore_errors=True)  # all of it is on the server
            with contextlib.suppress(OSError):  # an earlier attempt's run may lie beside it
                self._folder.parent.rmdir()
            return
        self.sync_command = self._upload
        events.emit("tracker", message="The tracker's server lacks this run.", upload=self.sync_command)

    def _try(self, action: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            if not self._failed:
                events.warn("The tracker failed; the job goes on without it.", reason=_one_line(error))
            self._failed = True


def _teardown() -> None:
    """End wandb's own process now, and not at Python's exit, where nobody could say what it waits for."""
    import wandb

    with contextlib.suppress(Exception, SystemExit):
        _within(_TEARDOWN_TIMEOUT_S, wandb.teardown)


def _within(seconds: float, action: Callable[[], object]) -> None:
    """Run `action` for so long at most. Raises what it raises, or TimeoutError and leaves it behind."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="tracker", daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if thread.is_alive():
        raise TimeoutError(f"no answer within {seconds:g} s")


def _one_line(error: Exception) -> str:
    return redact(" ".join(str(error).split())) or type(error).__name__


_TIMEOUT_S = 4.0
_VIEWER = json.dumps({"query": "query Viewer { viewer { username entity } }"}).encode()


@dataclass(frozen=True)
class TrackerCheck:
    """How runs will be tracked, and why not as well as they could be; a tracker's trouble never fails a job."""

    text: str
    warning: str = ""
    fix: str = ""


def check_tracker(mode: Mode, server: str, has_key: bool, key: str | None) -> TrackerCheck:
    """Look at the tracker; takes no longer than a few seconds. Raises UsageError where wandb is asked for by name and
    not installed."""
    wanted = ("online" if has_key else "offline") if mode == "auto" else mode
    if wanted == "off" or not is_installed(mode):
        return TrackerCheck("off")
    if wanted == "offline":
        return TrackerCheck("offline, in the run folder" + (", for want of a key" if mode == "auto" else ""))
    if not has_key:
        return TrackerCheck(
            "", "there is no API key, so that it will be offline", "set WANDB_API_KEY, or run wandb login"
        )
    return _asked(server, key)


def _asked(server: str, key: str | None) -> TrackerCheck:
    host = urlsplit(server).netloc.rpartition("@")[2]
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()
    try:
        request = urllib.request.Request(f"{server}/graphql", _VIEWER, headers)  # noqa: S310
        with closing(urllib.request.urlopen(request, timeout=_TIMEOUT_S)) as answer:  # noqa: S310
            viewer = (json.loads(answer.read(2**20)).get("data") or {}).get("viewer")
    except urllib.error.HTTPError as error:
        error.close()
        viewer, refused = None, f"{host} answered HTTP {error.code}"
    except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
        return TrackerCheck(
            "", f"{host} can't be reached ({type(error).__name__}), so that it will be offline", "check the network"
        )
    else:
        refused = f"{host} does not know the key"
    if key and not viewer:
        return TrackerCheck("", f"{refused}, so that it will be offline", "check WANDB_API_KEY and WANDB_BASE_URL")
    known = f", as {viewer.get('entity') or viewer.get('username')}" if isinstance(viewer, dict) else ""
    return TrackerCheck(f"online at {host}{known}")
