"""The bench measures what it is asked for, on generated images and given ones, and leaves nothing behind."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inat_job import events
from inat_job.bench.children import ROOT
from inat_job.command_options import BenchOptions
from inat_job.commands import bench
from tests.harness.job_runs import Make, StopAfter

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's remarks on a trainer without workers and loggers


@pytest.fixture(autouse=True)
def other_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench is called from another folder than its own."""
    monkeypatch.chdir(tmp_path)


IN_PROCESS = ("assembly", "copy", "augmentation", "forward", "step", "epoch", "matrix", "test", "checkpoint")


def measured(tmp_path: Path) -> dict[str, dict]:
    figures = json.loads((tmp_path / "b.json").read_text())
    return {each["name"]: each for each in figures["measured"]} | {"": figures}


def run(
    settings: Make, tmp_path: Path, which: str = "a", changes: dict[str, str] | None = None, **options: object
) -> dict:
    request = BenchOptions(runs=1, json=str(tmp_path / "b.json"), **options)  # type: ignore[arg-type]
    bench.run(settings(which, **(changes or {})), request, StopAfter(10**9), 0.0)
    return measured(tmp_path)


@pytest.mark.soak
def test_every_stage_is_measured(settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    found = run(settings, tmp_path, stages=(*IN_PROCESS, "pull", "decode"))
    assert found[""]["bound_by"] in ("batch assembly", "step without data")
    assert found["training epoch"]["limit"]["name"] == "step without data"
    assert found["prepare"]["share"]["median"] > 0
    assert found["pull and prepare"]["limit"]["name"] == "plain read"
    assert found["a checkpoint an epoch"]["median"] > 0
    assert found[""]["images"] == {"train": 48, "val": 12, "test": 15}
    assert sum(found[""]["run"]["shares"].values()) == pytest.approx(1)
    assert list((tmp_path / "runs").glob("bench-*")) == []
    assert list((tmp_path / "cache").glob("bench-*")) == []
    assert "training epoch" in capsys.readouterr().err


@pytest.mark.soak
def test_baseline_trains_in_turn(settings: Make, tmp_path: Path) -> None:
    found = run(settings, tmp_path, stages=("epoch",), baseline=True)
    ratio = found["training epoch"]["median"] / found["baseline epoch"]["median"]
    assert found["training epoch over baseline epoch"]["median"] == pytest.approx(ratio)


def test_frozen_stem_is_measured_on_features(settings: Make, tmp_path: Path) -> None:
    changes = {"model__strategy": "head", "train__epochs": "6", "model__feature_views": "3"}
    found = run(settings, tmp_path, "b", changes, stages=("step", "epoch", "matrix", "augmentation"))
    assert found[""]["reuse"]["views"] == 3
    assert set(found) == {"", "step without data", "training epoch", "large matrices"}


@pytest.mark.soak
def test_whole_jobs_beside_the_baseline(settings: Make, tmp_path: Path) -> None:
    found = run(settings, tmp_path, "a", {"train__epochs": "2"}, stages=("matrix",), end_to_end=True, baseline_epochs=1)
    assert "1 of 2 epochs" in found["whole baseline"]["note"]
    assert 0 <= found["test accuracy of the baseline"]["median"] <= 1
    assert found["whole job from a prepared cache"]["median"] > 0  # the comparison depends on the machine


@pytest.mark.soak
def test_start_and_growth_are_measured(settings: Make, tmp_path: Path) -> None:
    found = run(settings, tmp_path, stages=("start",), scale=(1, 2))
    assert found["time to first step"]["limit"]["median"] > 0
    assert found["peak anonymous memory at 2x"]["share"]["median"] > 0


def test_synthetic_images_need_neither_boto3_nor_wandb(tmp_path: Path) -> None:
    words = (
        "bench --part a --synthetic 100 --image-size 32 --filters 4 --batch-size 8 --runs 1 --stages forward".split()
    )
    script = (
        "import sys\nfor name in ('wandb', 'boto3', 'botocore'): sys.modules[name] = None\n"
        f"sys.argv = {['entrypoint.py', *words]!r}\nimport entrypoint\nentrypoint.main()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [each["event"] for each in events[-2:]] == ["bench", "done"]


def test_a_person_gets_the_table_alone(settings: Make, capsys: pytest.CaptureFixture[str]) -> None:
    events.configure(text=True)
    bench.run(settings(), BenchOptions(runs=1, stages=("matrix", "epoch")), StopAfter(10**9), 0.0)
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()][:3] == ["what", "step without data", "training epoch"]
    assert "{" not in out + err
    assert err.splitlines()[-1].startswith("Bound by: ")
