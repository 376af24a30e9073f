"""The experiment tracker, wandb, and the loggers beside it. This is the only module that imports wandb.

Tracking never fails or delays the job: if wandb is missing, unreachable or slow, an online run becomes an offline one,
which one command uploads later.
"""

import contextlib
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inat_job import events
from inat_job.host import environment, process
from inat_job.job_settings import TrackerSettings
from inat_job.reporting.loggers import BackgroundLogger
from inat_job.reporting.tracker_check import Mode, mode_of_run
from inat_job.storage.threads import within
from inat_job.telemetry.redact import one_line

NOTHING: Mapping[str, object] = {}

CONFUSION = "confusion_matrix"

_MOST_CELLS = 10_000
"""Rows that wandb reads of a chart's table."""

STEP = "trainer/step"
"""The metric on the x axis of every chart. wandb's own step may only increase, but a resumed run repeats steps."""

FINISH_TIMEOUT_S = 10.0
"""Seconds that the end of a run may wait for its upload: less than the grace of a preempted container."""

_TEARDOWN_TIMEOUT_S = 3.0

_THREAD = "tracker"

_FORBIDDEN_IN_ID = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class _InitArguments:
    """The arguments of wandb.init."""

    run_id: str
    settings: TrackerSettings
    folder: Path
    kept_in: Path
    config: Mapping[str, object]
    resumed: bool
    timeout_s: float

    def wandb_folders(self) -> set[Path]:
        """The local folders of this run's attempts, online or offline."""
        return set((self.folder / "wandb").glob(f"*run-*-{self.run_id}*"))


def open_tracker(
    mode: Mode,
    *,
    run_id: str,
    settings: TrackerSettings,
    folder: Path,
    config: Mapping[str, object],
    has_key: bool,
    kept_in: Path | None = None,
    resumed: bool = False,
    init_timeout_s: float = 5,
) -> "Tracker":
    """Start or resume the run `run_id`, whose files are in `folder`/wandb, and in `kept_in`/wandb once it has ended.

    With `resumed`, what the server has of the run already is not logged again. Raises as `mode_of_run` does.
    """
    wanted = mode_of_run(mode, has_key)
    if wanted == "off":
        return Tracker(None, "off")
    wandb_id = _FORBIDDEN_IN_ID.sub("-", run_id)
    kept = (kept_in or folder).resolve()
    arguments = _InitArguments(wandb_id, settings, folder.resolve(), kept, config, resumed, init_timeout_s)
    online = _start("online", arguments) if wanted == "online" else None
    return online or _start("offline", arguments) or Tracker(None, "off")


def is_logged(metrics: Mapping[str, float], step: int, seen: Mapping[str, object]) -> bool:
    """Whether an earlier attempt logged these metrics, given the newest value of each, `seen`, and their STEP.

    A run that resumes repeats the steps since its checkpoint, with the same values.
    """
    last = seen.get(STEP)
    if not isinstance(last, int | float) or step > last:
        return False
    return step < last or all(seen.get(name) == value for name, value in metrics.items())


def _start(mode: Literal["online", "offline"], arguments: _InitArguments) -> "Tracker | None":
    """A running tracker, or None and a warning if it cannot start in this mode."""
    before = arguments.wandb_folders()
    try:
        with environment.without_wandb_server() if mode == "offline" else contextlib.nullcontext():
            run = _init(mode, arguments)
            seen = within(arguments.timeout_s, lambda: dict(run.summary), _THREAD) if arguments.resumed else {}
            tracker = Tracker(run, mode, arguments.kept_in, seen, arguments.settings.artifacts)
    except Exception as error:  # no error of the tracker may end the job
        _teardown()
        for leftover in arguments.wandb_folders() - before:
            shutil.rmtree(leftover, ignore_errors=True)
        fallback = "offline" if mode == "online" else "off"
        events.warn(f"The tracker could not start {mode} and is {fallback}.", reason=one_line(error))
        return None
    events.emit("tracker", mode=mode, run_id=tracker.run_id, url=tracker.url)
    return tracker


def _init(mode: Literal["online", "offline"], arguments: _InitArguments) -> Any:
    """The run object of wandb. Raises what wandb raises, within 10 s of the time-out."""
    _import()
    import wandb

    (arguments.folder / "wandb").mkdir(parents=True, exist_ok=True)  # without it wandb would silently use /tmp
    wandb.setup(_settings(arguments.timeout_s))  # not in init, which logs in, with a message, before it reads them
    run = wandb.init(
        mode=mode,
        id=arguments.run_id,
        name=arguments.run_id,
        resume="allow",
        project=arguments.settings.project,
        entity=arguments.settings.entity,
        tags=arguments.settings.tags or None,
        group=arguments.settings.group,
        notes=arguments.settings.notes,
        dir=str(arguments.folder),
        config=dict(arguments.config),
    )
    run.define_metric(STEP, hidden=True)
    run.define_metric("*", step_metric=STEP)
    return run


def _import() -> None:
    """Import wandb for the first time, which makes temporary folders as it is imported, in one that is deleted."""
    if "wandb" in sys.modules:
        return
    before, tempfile.tempdir = tempfile.tempdir, tempfile.mkdtemp(prefix="inat-job-")
    process.delete_at_end(tempfile.tempdir)
    try:
        import wandb  # noqa: F401
    finally:
        tempfile.tempdir = before


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

    def __init__(
        self,
        run: Any,
        mode: str,
        kept_in: Path = Path(),
        seen: Mapping[str, object] = NOTHING,
        artifacts: bool = False,
    ) -> None:
        self._run, self.mode, self._seen, self._artifacts = run, mode, seen, artifacts
        self.run_id: str | None = run and run.id
        self.url: str | None = run.url if mode == "online" else None
        self._folder = Path(run.settings.sync_dir if run else "")
        self._upload = f"wandb sync {shlex.quote(str(kept_in / 'wandb' / self._folder.name))}"
        self.sync_command = self._upload if mode == "offline" else None
        self._failed = False
        self._at_end: list[Callable[[Any], object]] = []
        self.loggers: Sequence[BackgroundLogger] = ()
        """Those of --tracker, which get the metrics and the results too."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log the metrics of a step, unless the server has them from an earlier attempt."""
        for logger in self.loggers:
            logger.log(metrics, step)
        if not is_logged(metrics, step, self._seen):
            self._try(lambda run: run.log({**metrics, STEP: step}))

    def summary(self, values: Mapping[str, object]) -> None:
        """Log the final values of the run by name."""
        for logger in self.loggers:
            logger.log_results(values)
        self._try(lambda run: run.summary.update(dict(values)))

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Log a table, as a file of the run."""
        self._try(lambda run: run.log({name: _table(run, name, columns, rows)}))

    def log_confusion(self, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> None:
        """Log the confusion matrix as wandb draws it: `counts` by true class, then by predicted one."""
        if len(classes) ** 2 <= _MOST_CELLS:
            self._try(lambda run: run.log({CONFUSION: _confusion(run, classes, counts)}))

    def log_image_table(
        self, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], shown: Callable[[], Sequence[Any]]
    ) -> None:
        """Log, as the run ends, a table whose first column has the images `shown`, uint8 (h, w, 3).

        wandb has no such table offline: its files would be outside the run folder.
        """
        if self.mode == "online":
            self._at_end.append(lambda run: run.log({name: _image_table(columns, rows, shown())}))

    def log_model(self, folder: Path) -> None:
        """Upload the files of a model, if that is asked for, as the run ends."""
        if self._artifacts and self.mode == "online":
            self._at_end.append(lambda run: _log_model(run, folder))
        elif self._artifacts:
            events.warn(f"--wandb-artifacts uploads nothing, because the tracker is {self.mode}.", model=str(folder))

    def log_images(self, images: Mapping[str, tuple[Path, str]]) -> None:
        """Log files of images by name, each with its caption."""
        self._try(lambda run: run.log({f"pictures/{name}": _image(*each) for name, each in images.items()}))

    def preempting(self) -> None:
        """Mark the run as preempted, to be resumed; `finish` follows with a code other than 0."""
        self._try(lambda run: run.mark_preempting())

    def finish(self, exit_code: int) -> None:
        """End the run in bounded time; it counts as failed unless `exit_code` is 0."""
        loggers, self.loggers, deadline = self.loggers, (), time.monotonic() + FINISH_TIMEOUT_S
        for logger in loggers:
            logger.close(exit_code)
        self._finish(exit_code)
        for logger in loggers:
            logger.wait(max(0.0, deadline - time.monotonic()))

    def _finish(self, exit_code: int) -> None:
        if self._run is None:
            return
        self._try(lambda run: within(FINISH_TIMEOUT_S + 2, lambda: self._end(run, exit_code), _THREAD))
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

    def _end(self, run: Any, exit_code: int) -> None:
        """What may wait for the server, and the end of the run."""
        try:
            within(FINISH_TIMEOUT_S / 2, lambda: [action(run) for action in self._at_end], _THREAD)
        finally:  # also tells wandb's threads that the run ends
            run.finish(exit_code=exit_code)

    def _try(self, action: Callable[[Any], object]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:
            if not self._failed:
                events.warn("The tracker failed; the job continues without it.", reason=one_line(error))
            self._failed = True


def _table(run: Any, name: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Any:
    """wandb's table, bound to the run: an unbound one would be an artifact too, for which wandb waits for its server
    and, offline, leaves files outside the run folder.
    """
    import wandb

    table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
    table.bind_to_run(run, name, "summary")  # type: ignore[no-untyped-call]
    return table


def _confusion(run: Any, classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Any:
    """wandb.plot.confusion_matrix, which takes predictions, made of counts."""
    import wandb

    columns = ["Actual", "Predicted", "nPredictions"]
    rows = [
        [true, predicted, count]
        for true, row in zip(classes, counts, strict=True)
        for predicted, count in zip(classes, row, strict=True)
    ]
    table = _table(run, f"{CONFUSION}_table", columns, rows)
    fields = {name: name for name in columns}
    return wandb.plot_table("wandb/confusion_matrix/v1", table, fields, {"title": "Confusion matrix, test images"})


def _image_table(columns: Sequence[str], rows: Sequence[Sequence[object]], shown: Sequence[Any]) -> Any:
    """A table that is an artifact, as wandb stores images in tables."""
    import wandb

    images = [wandb.Image(each, file_type="jpg") for each in shown]
    return wandb.Table(["image", *columns], [[image, *row] for image, row in zip(images, rows, strict=True)])


def _log_model(run: Any, folder: Path) -> None:
    """Raises ValueError if the server refuses the artifact; a slow upload is left to run.finish, which waits too."""
    import wandb
    from wandb.sdk.artifacts.exceptions import WaitTimeoutError

    artifact = wandb.Artifact(f"model-{run.id}", "model")
    artifact.add_dir(str(folder), policy="immutable")  # without another copy on the disk
    run.log_artifact(artifact)
    with contextlib.suppress(WaitTimeoutError):
        artifact.wait(round(FINISH_TIMEOUT_S / 4))


def _image(path: Path, caption: str) -> Any:
    import wandb

    return wandb.Image(str(path), caption=caption)


def _teardown() -> None:
    """End wandb's own process now and not when Python exits, where its waiting could not be bounded."""
    import wandb

    with contextlib.suppress(Exception, SystemExit):
        within(_TEARDOWN_TIMEOUT_S, wandb.teardown, _THREAD)
