"""The experiment tracker. This is the only module that imports wandb.

Tracking never fails or delays the job: if wandb is missing, unreachable or slow, an online run becomes an offline one,
which one command uploads later.
"""

import base64
import contextlib
import http.client
import importlib.util
import json
import re
import shlex
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inat_job import events
from inat_job.address import host_of
from inat_job.errors import NoPermissionError, UsageError
from inat_job.host import environment
from inat_job.storage.disk import parse_json
from inat_job.storage.threads import start_daemon
from inat_job.telemetry.redact import redact

Mode = Literal["auto", "online", "offline", "off"]

STEP = "trainer/step"
"""The metric on the x axis of every chart. wandb's own step may only increase, but a resumed run repeats steps."""

FINISH_TIMEOUT_S = 10.0
"""Seconds that the end of a run may wait for its upload: less than the grace of a preempted container."""

_TEARDOWN_TIMEOUT_S = 3.0

_CHECK_TIMEOUT_S = 4.0

_FORBIDDEN_IN_ID = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class _InitArguments:
    """The arguments of wandb.init."""

    run_id: str
    project: str
    entity: str | None
    folder: Path
    config: Mapping[str, object]
    timeout_s: float

    def wandb_folders(self) -> set[Path]:
        """The local folders of this run's attempts, online or offline."""
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
) -> "Tracker":
    """Start or resume the run `run_id`, whose files are in `folder`/wandb.

    "auto" is online with a key, and offline without. Raises UsageError if another mode is asked for and wandb is not
    installed, NoPermissionError for "online" without a key.
    """
    wanted = ("online" if has_key else "offline") if mode == "auto" else mode
    if wanted == "off" or not is_installed(mode):
        return Tracker(None, "off")
    require_key(mode, has_key)
    wandb_id = _FORBIDDEN_IN_ID.sub("-", run_id)
    arguments = _InitArguments(wandb_id, project, entity, folder.resolve(), config, init_timeout_s)
    online = _start("online", arguments) if wanted == "online" else None
    return online or _start("offline", arguments) or Tracker(None, "off")


def require_key(mode: str, has_key: bool) -> None:
    """Raise NoPermissionError where the run is to be tracked online and cannot be."""
    if mode == "online" and not has_key:
        raise NoPermissionError(
            "--wandb online needs an API key: set WANDB_API_KEY or run wandb login, or use --wandb offline."
        )


def is_installed(mode: Mode) -> bool:
    """Whether wandb can be imported. Raises UsageError if it cannot and `mode` is not "auto"."""
    found = importlib.util.find_spec("wandb")
    if found and found.origin:  # None for a folder named wandb, as offline runs leave behind
        return True
    if mode != "auto":
        raise UsageError(
            f"--wandb {mode} needs the package wandb, which is not installed: install it, or use --wandb off."
        )
    events.warn("The tracker is off, because the package wandb is not installed.")
    return False


def _start(mode: Literal["online", "offline"], arguments: _InitArguments) -> "Tracker | None":
    """A running tracker, or None and a warning if it cannot start in this mode."""
    before = arguments.wandb_folders()
    try:
        with environment.without_wandb_server() if mode == "offline" else contextlib.nullcontext():
            tracker = Tracker(_init(mode, arguments), mode)
    except Exception as error:  # no error of the tracker may end the job
        _teardown()
        for leftover in arguments.wandb_folders() - before:
            shutil.rmtree(leftover, ignore_errors=True)
        fallback = "offline" if mode == "online" else "off"
        events.warn(f"The tracker could not start {mode} and is {fallback}.", reason=_one_line(error))
        return None
    events.emit("tracker", mode=mode, run_id=tracker.run_id, url=tracker.url)
    return tracker


def _init(mode: Literal["online", "offline"], arguments: _InitArguments) -> Any:
    """The run object of wandb. Raises what wandb raises, within 10 s of the time-out."""
    import wandb

    (arguments.folder / "wandb").mkdir(parents=True, exist_ok=True)  # without it wandb would silently use /tmp
    wandb.setup(_settings(arguments.timeout_s))  # not in init, which logs in, with a message, before it reads them
    run = wandb.init(
        mode=mode,
        id=arguments.run_id,
        name=arguments.run_id,
        resume="allow",
        project=arguments.project,
        entity=arguments.entity,
        dir=str(arguments.folder),
        config=dict(arguments.config),
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
        # One quick retry, since this also bounds the start. A running upload has its own, longer time-outs.
        x_graphql_retry_max=1,
        x_graphql_retry_wait_min_seconds=0.2,
        x_graphql_retry_wait_max_seconds=0.5,
        x_graphql_timeout_seconds=max(1.0, 0.6 * timeout_s),
        # The job has its own log, and sends nothing about the machine or the code.
        silent=True,
        console="off",
        save_code=False,
        disable_code=True,
        disable_git=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        # The job alone decides where the run is and what it is called.
        use_dot_wandb=False,
        symlink=False,
        sagemaker_disable=True,
    )


class Tracker:
    """Where metrics are logged: a run of wandb, or none. Errors of wandb are caught, and the first one is logged.

    `mode` is "online", "offline" or "off", after any fallback. `sync_command` uploads a run that is only in the run
    folder; it is None if the server has it all.
    """

    def __init__(self, run: Any, mode: str) -> None:
        self._run, self.mode = run, mode
        self.run_id: str | None = run and run.id
        self.url: str | None = run.url if mode == "online" else None
        self._folder = Path(run.settings.sync_dir if run else "")
        self._upload = f"wandb sync {shlex.quote(str(self._folder))}"
        self.sync_command = self._upload if mode == "offline" else None
        self._failed = False

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step; steps may repeat."""
        self._try(lambda run: run.log({**metrics, STEP: step}))

    def summary(self, values: Mapping[str, object]) -> None:
        """Log the final values of the run by name."""
        self._try(lambda run: run.summary.update(dict(values)))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Log a table, as a file of the run."""
        self._try(lambda run: run.log({name: _table(run, name, columns, rows)}))

    def preempting(self) -> None:
        """Mark the run as preempted, to be resumed; `finish` follows with a code other than 0."""
        self._try(lambda run: run.mark_preempting())

    def finish(self, exit_code: int) -> None:
        """End the run in bounded time; it counts as failed unless `exit_code` is 0."""
        if self._run is None:
            return
        self._try(lambda run: _within(FINISH_TIMEOUT_S + 2, lambda: run.finish(exit_code=exit_code)))
        self._run = None
        _teardown()
        if self.mode == "online" and not self._failed:
            shutil.rmtree(self._folder, ignore_errors=True)  # the server has it all
            with contextlib.suppress(OSError):  # not empty if it holds an earlier attempt's run
                self._folder.parent.rmdir()
            return
        self.sync_command = self._upload
        message = "The run is tracked offline, in the run folder."
        if self.mode == "online":
            message = "The tracker's server does not have all of this run."
        events.emit("tracker", message=message, upload=self.sync_command)

    def _try(self, action: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            if not self._failed:
                events.warn("The tracker failed; the job continues without it.", reason=_one_line(error))
            self._failed = True


def _table(run: Any, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Any:
    """wandb's table, bound to the run: an unbound one would be an artifact too, for which wandb waits for its server
    and, offline, leaves files outside the run folder.
    """
    import wandb

    table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    table.bind_to_run(run, name, "summary")  # type: ignore[no-untyped-call]
    return table


def _teardown() -> None:
    """End wandb's own process now and not when Python exits, where its waiting could not be bounded."""
    import wandb

    with contextlib.suppress(Exception, SystemExit):
        _within(_TEARDOWN_TIMEOUT_S, wandb.teardown)


def _within(seconds: float, action: Callable[[], object]) -> None:
    """Run `action` for at most `seconds`. Raises what it raises, or TimeoutError, leaving it to its thread."""
    future = start_daemon(action, "tracker")
    if not futures.wait([future], seconds).done:
        raise TimeoutError(f"no answer within {seconds:g} s")
    future.result()


def _one_line(error: Exception) -> str:
    return redact(" ".join(str(error).split())) or type(error).__name__


_VIEWER = json.dumps({"query": "query Viewer { viewer { username entity } }"}).encode()


@dataclass(frozen=True)
class TrackerCheck:
    """How a run will be tracked or, in `warning` and `fix`, why it will only be tracked offline."""

    text: str
    warning: str = ""
    fix: str = ""


def check_tracker(mode: Mode, server: str, has_key: bool, key: str | None) -> TrackerCheck:
    """Find out within a few seconds how a run would be tracked; `server` is the URL of wandb's server.

    Raises UsageError if a mode other than "auto" is asked for and wandb is not installed, NoPermissionError for
    "online" without a key.
    """
    wanted = ("online" if has_key else "offline") if mode == "auto" else mode
    if wanted == "off" or not is_installed(mode):
        return TrackerCheck("off")
    if wanted == "offline":
        return TrackerCheck("offline, in the run folder" + (", because there is no API key" if mode == "auto" else ""))
    require_key(mode, has_key)
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
