"""TensorBoard and MLflow, by Lightning's own loggers, each in a thread of its own: what hangs there delays nothing.

Both get the rows of metrics.jsonl when a run resumes: TensorBoard's files are written again as a whole, and MLflow gets
what it lacks, so no step is there twice and none is missing.
"""

import queue
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inat_job import events
from inat_job.errors import Preempted
from inat_job.host import environment
from inat_job.storage.threads import start_daemon
from inat_job.telemetry.redact import one_line

TENSORBOARD_FOLDER = "tensorboard"

_RESULTS = re.compile(r"(test|val)/\w+")
"""The values of the report that are results of the run."""

_FLUSH_S = 10

Seen = Collection[tuple[str, int]]
"""Names and steps of what is logged already."""

Row = Mapping[str, float]


@dataclass(frozen=True)
class LoggedRun:
    """The run as loggers know it.

    `identity` is the same for all attempts at a run and for no other, None where each attempt is logged on its own;
    `folder` is where event files go.
    """

    name: str
    project: str
    identity: str | None
    folder: Path
    config: Mapping[str, Any]
    rows: Sequence[Row] = ()


def open_loggers(names: Sequence[str], run: LoggedRun) -> list["BackgroundLogger"]:
    """The loggers of these names, with the run's rows so far in their queues."""
    return [BackgroundLogger(name, run, _OPENERS[name]) for name in names]


class BackgroundLogger:
    """A logger that works off a queue. Its errors are caught, and the first one is a warning."""

    def __init__(self, name: str, run: LoggedRun, opener: Callable[[LoggedRun], tuple[Any, Seen]]) -> None:
        self._name, self._run, self._step, self._failed = name, run, 0, False
        self._queue: queue.SimpleQueue[Callable[[Any], object] | None] = queue.SimpleQueue()
        self._seen: Seen = ()
        self._opener = opener
        for row in run.rows:
            self.log({key: value for key, value in row.items() if key != "step"}, int(row["step"]))
        self._ended = start_daemon(self._work, f"tracker {name}")

    def log(self, metrics: Row, step: int) -> None:
        """Log the metrics of a step, except for those that are logged already."""
        self._step = max(self._step, step)
        self._queue.put(lambda logger: self._log(logger, metrics, step))

    def log_results(self, values: Mapping[str, object]) -> None:
        """Log the results among the final values, beside the settings that led to them."""
        results = {
            key: float(value)
            for key, value in values.items()
            if _RESULTS.fullmatch(key) and isinstance(value, int | float)
        }
        step = self._step
        if self._name == "tensorboard":  # its table of hyperparameters takes both at once
            self._queue.put(lambda logger: logger.log_hyperparams(dict(self._run.config), results, step))
        else:
            self._queue.put(lambda logger: self._log(logger, results, step))

    def close(self, exit_code: int) -> None:
        """Have the logger end once its queue is empty."""
        status = {0: "success", Preempted.exit_code: "KILLED"}.get(exit_code, "failed")
        self._queue.put(lambda logger: logger.finalize(status))
        self._queue.put(None)

    def wait(self, seconds: float) -> None:
        """Wait for that end, but no longer than this."""
        if not futures.wait([self._ended], seconds).done:
            self._warn("does not have all of this run", "it did not answer in time")

    def _work(self) -> None:
        logger: Any = None
        try:
            logger, self._seen = self._opener(self._run)
        except Exception as error:
            self._warn("could not start", one_line(error))
        while action := self._queue.get():
            try:
                _ = logger and action(logger)
            except Exception as error:
                self._warn("failed", one_line(error))

    def _log(self, logger: Any, metrics: Row, step: int) -> None:
        if new := {key: value for key, value in metrics.items() if (key, step) not in self._seen}:
            logger.log_metrics(new, step)

    def _warn(self, what: str, reason: str) -> None:
        if not self._failed:
            events.warn(f"The tracker {self._name} {what}; the job continues without it.", reason=reason)
        self._failed = True


def _tensorboard(run: LoggedRun) -> tuple[Any, Seen]:
    from lightning.fabric.loggers.tensorboard import TensorBoardLogger

    return TensorBoardLogger(run.folder, name="", version=run.name, flush_secs=_FLUSH_S), ()


def _mlflow(run: LoggedRun) -> tuple[Any, Seen]:
    """The run of this identity, or a new one, without the names of machine, user and program that MLflow would add."""
    environment.quiet_mlflow()
    from lightning.pytorch.loggers import MLFlowLogger
    from mlflow.tracking import MlflowClient

    uri = environment.mlflow_server()
    client = MlflowClient(uri)
    experiment = _mlflow_experiment(client, environment.mlflow_experiment() or run.project)
    tag = "inat-job.id"
    found = client.search_runs([experiment], f"tags.`{tag}` = '{run.identity}'", max_results=1) if run.identity else []
    if found:
        run_id = found[0].info.run_id
        client.update_run(run_id, "RUNNING")
    else:
        tags = {tag: run.identity} if run.identity else {}
        run_id = client.create_run(experiment, tags=tags, run_name=run.name).info.run_id
    logger = MLFlowLogger(tracking_uri=uri, run_id=run_id)
    if not found:
        logger.log_hyperparams(dict(run.config))
    events.emit("tracker", mode="mlflow", run_id=run_id)
    return logger, {
        (key, metric.step)
        for each in found
        for key in each.data.metrics
        for metric in client.get_metric_history(run_id, key)
    }


def _mlflow_experiment(client: Any, name: str) -> str:
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_experiment_by_name(name)
        return str(found.experiment_id if found else client.create_experiment(name))
    except MlflowException:  # of another job of this experiment, at the same time
        found = client.get_experiment_by_name(name)
        if found is None:
            raise
        return str(found.experiment_id)


_OPENERS: dict[str, Callable[[LoggedRun], tuple[Any, Seen]]] = {"tensorboard": _tensorboard, "mlflow": _mlflow}
