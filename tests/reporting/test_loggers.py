"""--tracker tensorboard and mlflow, read back by TensorBoard's and MLflow's own readers."""

import json
import socket
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest

from inat_job.commands import train
from inat_job.configuration import configure
from inat_job.errors import ConflictError, Preempted
from inat_job.job_settings import TrackerSettings
from inat_job.platforms.platform import NO_PLATFORM
from inat_job.reporting import tracking
from inat_job.reporting.loggers import LoggedRun, open_loggers
from inat_job.reporting.tracker_check import check_tracking
from inat_job.reporting.tracking import Tracker
from inat_job.settings import Settings
from inat_job.signals import StopFlag, never

pytestmark = pytest.mark.filterwarnings("ignore")  # TensorBoard and MLflow deprecate what they use

CONFIG = {"train": {"lr": 0.1}, "part": "a"}
Open = Callable[..., Tracker]
Scalars = dict[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def _time_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for the first import of MLflow on a busy machine."""
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 120.0)


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's client of a store that the job logs to."""
    pytest.importorskip("mlflow")
    address = (tmp_path / "mlflow").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    return MlflowClient(address)


@pytest.fixture
def run(tmp_path: Path) -> Open:
    def opened(*names: str, identity: str | None = "1", **changes: Any) -> Tracker:
        tracker = Tracker(None, "off")
        given = {"folder": tmp_path / "tensorboard", "config": CONFIG, **changes}
        tracker.loggers = open_loggers(names, LoggedRun("r", "p", identity, **given))
        return tracker

    return opened


def _scalars(folder: Path, name: str = "r") -> Scalars:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    read = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    [found] = [each for each in read.Runs() if each.rpartition("/")[2] == name]
    return {
        tag: [(each.step, each.value) for each in read.Scalars(found, tag)] for tag in read.Runs()[found]["scalars"]
    }


def _history(client: Any) -> Scalars:
    """The metrics of the only run of the only experiment that has one, by step."""
    [found] = client.search_runs([each.experiment_id for each in client.search_experiments()])
    history = {key: client.get_metric_history(found.info.run_id, key) for key in found.data.metrics}
    return {key: sorted((each.step, each.value) for each in values) for key, values in history.items()}


def test_tensorboard_reads_metrics_settings_and_results(run: Open, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    tracker = run("tensorboard")
    for step in (1, 2):
        tracker.log({"train_loss": 1 / step}, step)
    tracker.summary({"test/accuracy": 0.75, "test/per_class/x/n": 1, "status": "done", "settings/train/epochs": 2})
    tracker.finish(0)
    assert _scalars(tmp_path) == {"train_loss": [(1, 1.0), (2, 0.5)], "test/accuracy": [(2, 0.75)]}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import metadata
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(tmp_path / "tensorboard" / "r")).Reload()
    content = events.PluginTagToContent("hparams")[metadata.SESSION_START_INFO_TAG]
    start = HParamsPluginData.FromString(content).session_start_info
    assert start.hparams["train/lr"].number_value == 0.1


def test_mlflow_reads_metrics_settings_and_results(run: Open, client: Any) -> None:
    tracker = run("mlflow")
    for step in (1, 2):
        tracker.log({"train_loss": 1 / step}, step)
    tracker.summary({"test/accuracy": 0.75, "test/per_class/x/n": 1, "status": "done"})
    tracker.finish(0)
    assert _history(client) == {"train_loss": [(1, 1.0), (2, 0.5)], "test/accuracy": [(2, 0.75)]}
    [found] = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    assert (found.info.run_name, found.info.status) == ("r", "FINISHED")
    assert found.data.params == {"train/lr": "0.1", "part": "a"}
    assert not {"mlflow.user", "mlflow.source.name", "mlflow.source.git.commit"} & found.data.tags.keys()


def test_mlflow_continues_the_run_of_an_identity_alone(run: Open, client: Any) -> None:
    rows = [{"step": step, "train_loss": 1 / step} for step in (1, 2, 3)]
    tracker = run("mlflow", identity="x")
    for row in (*rows, {"step": 4, "train_loss": 0.25}):  # as far as it got before it was killed
        tracker.log({"train_loss": row["train_loss"]}, int(row["step"]))
    tracker.finish(143)
    tracker = run("mlflow", identity="x", rows=rows)
    for step in (4, 5):
        tracker.log({"train_loss": 1 / step}, step)
    tracker.finish(0)
    assert _history(client) == {"train_loss": [(step, 1 / step) for step in range(1, 6)]}
    for identity in ("y", None, None):
        run("mlflow", identity=identity).finish(1)
    found = client.search_runs([client.get_experiment_by_name("p").experiment_id])
    assert sorted(each.info.status for each in found) == ["FAILED"] * 3 + ["FINISHED"]


def test_silent_server_costs_no_more_than_the_time_limit(
    run: Open, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        tracker = run("mlflow")
        for step in range(1000):
            tracker.log({"train_loss": 1.0}, step)
        tracker.finish(0)
        assert time.monotonic() - started < 5
    assert capsys.readouterr().out.count("The tracker mlflow does not have all of this run") == 1


def test_folder_that_cannot_be_written_costs_one_warning(
    run: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    (tmp_path / "file").touch()
    tracker = run("tensorboard", folder=tmp_path / "file" / "x")
    for step in range(3):
        tracker.log({"train_loss": 1.0}, step)
    tracker.finish(0)
    assert capsys.readouterr().out.count("The tracker tensorboard failed; the job continues without it.") == 1


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow-skinny")])
def test_missing_package_is_refused_before_any_work(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: ModuleSpec(name, None))
    with pytest.raises(ConflictError, match=f"pip install {package}, .* EXTRAS={name}, or leave it out") as caught:
        train.run(_settings(tmp_path, name), StopFlag(), time.perf_counter(), NO_PLATFORM)
    assert caught.value.exit_code == 78
    assert not list(tmp_path.iterdir())


def test_mlflow_without_an_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr("inat_job.reporting.tracker_check._is_found", lambda package: True)
    with pytest.raises(ConflictError, match="set MLFLOW_TRACKING_URI"):
        check_tracking(TrackerSettings(mode="off", loggers=("mlflow",)), never)


def _settings(folder: Path, trackers: str) -> Settings:
    flags = {"data.uri": "demo:", "data.cache_dir": str(folder / "cache"), "run.output": str(folder / "runs")}
    flags |= {"data.image_size": 32, "model.filters": "4", "model.dense": 8, "train.batch_size": 16}
    flags |= {"run.run_id": "r", "train.epochs": 2, "train.accelerator": "cpu", "run.pictures": False}
    return configure("a", {**flags, "tracker.mode": "off", "tracker.loggers": trackers}, (), None).settings


class _StopInSecondEpoch(StopFlag):
    """A stop flag that is set once a row of metrics.jsonl follows the validation of the first epoch."""

    def __init__(self, metrics: Path) -> None:
        super().__init__()
        self._metrics = metrics

    def __call__(self) -> bool:
        return self._metrics.exists() and "val_loss" in self._metrics.read_text().rpartition("\n{")[0]


@pytest.mark.soak
def test_repeated_steps_are_read_back_once(client: Any, tmp_path: Path) -> None:
    settings, folder = _settings(tmp_path, "tensorboard,mlflow"), tmp_path / "runs" / "r"
    with pytest.raises(Preempted):
        train.run(settings, _StopInSecondEpoch(folder / "metrics.jsonl"), time.perf_counter(), NO_PLATFORM)
    stopped = _scalars(tmp_path / "runs")
    newest = max(folder.glob("checkpoints/*.ckpt"))  # as if it had been killed: what follows the epoch is repeated
    assert int(newest.stem) > stopped["val_loss"][-1][0]
    for path in folder.glob(f"checkpoints/{newest.stem}.*"):
        path.unlink()
    train.run(settings, StopFlag(), time.perf_counter(), NO_PLATFORM)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = {
        key: [(row["step"], row[key]) for row in rows if key in row] for key in {key for row in rows for key in row}
    }
    del logged["step"]
    accuracy = json.loads((folder / "report.json").read_text())["test"]["accuracy"]
    logged["test/accuracy"] = [(rows[-1]["step"], accuracy)]
    for found in (_scalars(tmp_path / "runs"), _history(client)):
        assert logged.keys() <= found.keys()
        for key, values in logged.items():
            assert [step for step, _ in found[key]] == [step for step, _ in values], key
            assert [value for _, value in found[key]] == pytest.approx([value for _, value in values]), key
    assert len(list(folder.glob("**/events*"))) == 1
