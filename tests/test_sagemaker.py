"""`train` in an emulated /opt/ml, as real processes: what SageMaker finds there afterwards."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inat_job.models.export import load_exported
from tests.harness.children import Child, children, wait_for_end
from tests.harness.made_images import tree, write_folder, write_zip

ROOT = Path(__file__).parent.parent
SMALL = {"part": "a", "image_size": "32", "filters": "4", "batch-size": "32", "epochs": "1", "wandb": "off"}


@pytest.fixture
def ml(tmp_path: Path) -> Path:
    """SageMaker's folder when the container starts."""
    for name in ("input/config", "input/data", "model", "output/data", "checkpoints"):
        (tmp_path / "ml" / name).mkdir(parents=True)
    return tmp_path / "ml"


@pytest.fixture
def train(ml: Path, tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Starts `train`, or another command, with these hyperparameters in an empty folder, as the job `birds`."""

    def start(
        hyperparameters: object, *command: str, silent: bool = False, within: tuple[str, ...] = (), **environment: str
    ) -> Child:
        (ml / "input/config/hyperparameters.json").write_text(json.dumps(hyperparameters))
        variables = {"SAGEMAKER_BASE_DIR": str(ml), "TRAINING_JOB_NAME": "birds", "OMP_NUM_THREADS": "1", **environment}
        return started.start(command or (() if silent else ("train",)), variables, within)

    work = tmp_path / "work"
    work.mkdir()
    with children(work) as started:
        yield start


def names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def failure(ml: Path) -> str:
    return (ml / "output/failure").read_text()


def ended(child: Child) -> tuple[int, list[dict[str, object]], str]:
    """The exit code, the events, and the last line on stderr."""
    out, err = child.communicate(timeout=300)
    return child.returncode, [json.loads(line) for line in out.splitlines()], (err.splitlines() or [""])[-1]


@pytest.mark.soak
def test_run_writes_model_and_results(train: Callable[..., Child], ml: Path) -> None:
    code, events, last = ended(train({**SMALL, "data": "demo:", "sagemaker_region": "r"}))
    assert code == 0, last
    assert names(ml / "model") == {"model.json", "model.safetensors", "README.md"}
    load_exported(ml / "model")
    results = {"report.json", "report.html", "predictions.csv", "plots/curves.png", "plots/confusion.png"}
    found = names(ml / "output/data")
    assert found >= results
    assert all(name in results or name.startswith("plots/") for name in found)
    report = json.loads((ml / "output/data/report.json").read_text())
    assert (report["status"], report["run_id"], report["settings"]["train"]["batch_size"]) == ("done", "birds", 32)
    assert (ml / "checkpoints/birds/checkpoints/latest.json").exists()
    assert not (ml / "output/failure").exists()
    assert events[0]["event"] == "platform"

    for name in (*found, "../../model/model.json"):
        (ml / "output/data" / name).unlink()
    again = train({**SMALL, "data": "demo:"}, silent=True)  # a restart after the report was written, without a word
    code, events, _ = ended(again)
    assert (code, names(ml / "output/data"), len(names(ml / "model"))) == (0, found, 3)
    assert not [event for event in events if event["event"] == "epoch"]

    (ml / "output/data/report.json").unlink()
    code, _, last = ended(train({**SMALL, "data": "demo:"}, "test", "--checkpoint", "birds"))
    assert code == 0, last
    again = json.loads((ml / "output/data/report.json").read_text())
    assert (again["run_id"], again["test"]["accuracy"]) == ("test-birds", report["test"]["accuracy"])


@pytest.mark.soak
def test_sweep_by_hyperparameters(train: Callable[..., Child], ml: Path) -> None:
    search = {"command": "sweep", "trials": "1", "retrain": "0", "max-time": "1h"}
    code, events, last = ended(train({**SMALL, **search, "data": "demo:", "run_id": "s"}))
    assert code == 0, last
    report = json.loads((ml / "checkpoints/s/report.json").read_text())
    assert (report["kind"], report["asked"]["max_time"], report["counts"]["done"]) == ("sweep", 3600.0, 1)
    assert [event["message"] for event in events if event["event"] == "done"]


@pytest.fixture(scope="module")
def isolated() -> tuple[str, ...]:
    """The words before a command that run it with no network but a loopback interface."""
    command = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("needs unshare, ip and the right to make a network namespace")
    return command


@pytest.mark.soak
def test_splits_by_two_channels(train: Callable[..., Child], ml: Path) -> None:
    write_folder(ml / "input/data", tree(train=20, test=5, root=""))
    mode = {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}
    (ml / "input/config/inputdataconfig.json").write_text(json.dumps({"train": mode, "val": mode}))
    code, _, last = ended(train(SMALL))
    assert code == 0, last
    report = json.loads((ml / "output/data/report.json").read_text())
    assert report["data"]["uri"] == str(ml / "input/data")
    assert report["test"]["n"] == 15


@pytest.mark.soak
def test_isolated_job_with_a_channel(train: Callable[..., Child], ml: Path, isolated: tuple[str, ...]) -> None:
    (ml / "input/data/training").mkdir()
    write_zip(ml / "input/data/training/photos.zip", tree(train=20, test=5))
    (ml / "input/config/inputdataconfig.json").write_text('{"training": {"TrainingInputMode": "File"}}')
    hyperparameters = {name: value for name, value in SMALL.items() if name != "wandb"}
    code, events, last = ended(train(hyperparameters, within=isolated, WANDB_API_KEY="0" * 40))
    assert code == 0, last
    assert [event["mode"] for event in events if event["event"] == "tracker" and "mode" in event] == ["offline"]
    assert names(ml / "model") == {"model.json", "model.safetensors", "README.md"}
    assert [name for name in names(ml / "checkpoints/birds/wandb") if name.endswith(".wandb")]


@pytest.mark.parametrize(
    ("hyperparameters", "message"),
    [
        ({**SMALL, "epochs": "many"}, "--epochs is 'many': it must be a whole number."),
        ({**SMALL, "epoch": "2"}, "there is no setting 'epoch'; did you mean epochs?"),
        ({"epochs": "2"}, "The hyperparameter part is missing: set it to a or b."),
        ({**SMALL, "part": "c"}, "The hyperparameter part is 'c': it must be a or b."),
        ([1], "has a list, not a JSON object"),
        ({**SMALL, "lr": "9" * 5000}, "--lr is "),
    ],
)
def test_invalid_hyperparameter_is_the_failure_reason(
    train: Callable[..., Child], ml: Path, hyperparameters: object, message: str
) -> None:
    code, events, last = ended(train(hyperparameters))
    assert (code, events) == (2, [])
    assert message in failure(ml)
    assert 1 <= len(failure(ml)) <= 1024
    assert last.removeprefix("Error: ").startswith(failure(ml).removesuffix("…"))
    assert names(ml / "model") | names(ml / "output/data") == set()


def test_invalid_command_line_is_the_failure_reason(train: Callable[..., Child], ml: Path) -> None:
    assert ended(train(SMALL, "train", "--epoch", "2"))[0] == 2
    assert "--epoch" in failure(ml)


@pytest.mark.parametrize("words", [["nobodys"], ["nobodys", "--wach"]])
def test_status_writes_no_failure_file(train: Callable[..., Child], ml: Path, words: list[str]) -> None:
    code, _, last = ended(train(SMALL, "status", *words))
    assert (code != 0, last.startswith("Error: ")) == (True, True)
    assert not (ml / "output/failure").exists()


def test_options_override_hyperparameters(train: Callable[..., Child]) -> None:
    child = train({**SMALL, "lr": "0.5"}, "train", "--epochs", "7", "--print-config")
    out, _ = child.communicate(timeout=60)
    assert child.returncode == 0
    assert "epochs = 7  # command line" in out
    assert "lr = 0.5  # hyperparameters" in out
    assert 'run_id = "birds"  # SageMaker' in out
    child = train({"part": "b", "last_k": "2", "strategy": "last-k"}, "train", "--print-config")
    assert 'strategy = "last-k"  # hyperparameters' in child.communicate(timeout=60)[0]


@pytest.mark.soak
def test_host_waits_for_rank_0_until_it_is_stopped(train: Callable[..., Child], ml: Path) -> None:
    config = {"current_host": "algo-2", "hosts": ["algo-1", "algo-2"]}
    (ml / "input/config/resourceconfig.json").write_text(json.dumps(config))
    child = train({**SMALL, "data": "demo:"})
    assert child.stdout is not None
    first = json.loads(child.stdout.readline())  # by then a signal stops it
    time.sleep(8)  # most often until it waits
    assert child.poll() is None, ended(child)
    child.send_signal(signal.SIGTERM)
    code, _ = wait_for_end(child)
    assert (code, first["rank"], first["world"], first["master"]) == (143, 1, 2, "algo-1")
    assert failure(ml).startswith("Stopped while")


@pytest.mark.soak
def test_stop_is_the_failure_reason_and_the_job_resumes(train: Callable[..., Child], ml: Path) -> None:
    long = {**SMALL, "data": "demo:", "epochs": "400"}
    for state in ("new", "resume"):
        child = train(long)
        assert child.stdout is not None
        seen = []
        for line in child.stdout:
            seen.append(json.loads(line))
            if seen[-1]["event"] == "epoch":
                break
        child.send_signal(signal.SIGTERM)
        _, err = child.communicate(timeout=60)
        assert (child.returncode, [each["state"] for each in seen if each["event"] == "run"]) == (143, [state])
        assert f"is stored in {ml}/checkpoints/birds/checkpoints" in failure(ml)
        assert err.splitlines()[-1] == f"Error: {failure(ml)}"
    assert names(ml / "model") == set()


def test_train_is_refused_outside_sagemaker(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "SAGEMAKER_BASE_DIR"}
    command = [sys.executable, str(ROOT / "entrypoint.py"), "train"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, "use parta or partb" in done.stderr) == (2, True)
