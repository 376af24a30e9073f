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
from inat_job.errors import UsageError
from tests.harness.job_runs import Make, StopAfter
from tests.harness.made_images import encoded, write_zip

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


def labelled(folder: Path) -> dict[str, str]:
    """A zip without folders and a table of its classes, one of which no folder can be called: data of 30 images."""
    names = {f"{number:02d}.jpg": encoded(number) for number in range(30)}
    table = folder / "labels.csv"
    rows = (f"{name},{('../up', 'a/b', 'Cats')[number % 3]}" for number, name in enumerate(names))
    table.write_text("\n".join(["path,label", *rows]))
    uri = write_zip(folder / "flat.zip", names)
    return {"data__uri": str(uri), "data__labels": str(table), "data__test_share": "0.4", "train__batch_size": "4"}


def test_images_of_a_table_are_measured(settings: Make, tmp_path: Path) -> None:
    """Repeated ones have folders instead of the table."""
    changes = labelled(tmp_path)
    found = run(settings, tmp_path, "a", changes, stages=("pull",))
    assert found[""]["images"] == {"train": 15, "val": 3, "test": 12}
    assert found["pull and prepare"]["median"] > 0
    found = run(settings, tmp_path, "a", changes, stages=("assembly",), repeat=2)
    assert found[""]["images"] == {"train": 30, "val": 6, "test": 24}


@pytest.mark.soak
def test_whole_jobs_with_a_table(settings: Make, tmp_path: Path) -> None:
    """In one bench, since each figure of a whole job takes processes of its own."""
    changes, stages = {**labelled(tmp_path), "train__epochs": "2"}, ("decode", "start", "epoch")
    whole = {"baseline": True, "end_to_end": True, "baseline_epochs": 1, "scale": (1, 2)}
    found = run(settings, tmp_path, "a", changes, stages=stages, **whole)
    assert found[""]["images"] == {"train": 15, "val": 3, "test": 12}
    assert found["prepare"]["share"]["median"] > 0
    assert found["training epoch over baseline epoch"]["median"] > 0
    assert found["whole baseline over whole job"]["median"] > 0
    assert "1 of 2 epochs" in found["whole baseline"]["note"]
    assert 0 <= found["test accuracy of the baseline"]["median"] <= 1
    assert found["whole job from a prepared cache"]["median"] > 0  # the comparison depends on the machine
    assert found["time to first step"]["median"] > 0
    assert found["time to first step"]["limit"]["median"] > 0
    assert found["peak anonymous memory at 2x"]["median"] > 0
    assert found["peak anonymous memory at 2x"]["share"]["median"] > 0


@pytest.mark.parametrize("change", [{"data__labels": "labels.csv"}, {"data__test_share": "0.3"}])
def test_generated_images_have_no_table(change: dict[str, str], settings: Make) -> None:
    with pytest.raises(UsageError, match="leave out --labels and --test-share"):
        bench.run(settings(**change), BenchOptions(synthetic=100), StopAfter(10**9), 0.0)


@pytest.mark.soak
def test_baseline_trains_in_turn(settings: Make, tmp_path: Path) -> None:
    found = run(settings, tmp_path, stages=("epoch",), baseline=True)
    ratio = found["training epoch"]["median"] / found["baseline epoch"]["median"]
    assert found["training epoch over baseline epoch"]["median"] == pytest.approx(ratio)


@pytest.mark.soak
def test_frozen_stem_is_measured_on_features(settings: Make, tmp_path: Path) -> None:
    changes = {"model__strategy": "head", "train__epochs": "6", "model__feature_views": "3"}
    found = run(settings, tmp_path, "b", changes, stages=("step", "epoch", "matrix", "augmentation"))
    assert found[""]["reuse"]["views"] == 3
    assert set(found) == {"", "step without data", "training epoch", "large matrices"}


@pytest.mark.soak
def test_synthetic_images_need_neither_boto3_nor_wandb(tmp_path: Path) -> None:
    words = (
        "bench --part a --synthetic 100 --image-size 32 --filters 4 --batch-size 8 --runs 1 --stages forward".split()
    )
    script = (
        "import sys\nfor name in ('wandb', 'boto3', 'botocore'): sys.modules[name] = None\n"
        f"sys.argv = {['entrypoint.py', *words]!r}\nimport entrypoint\nentrypoint.main()"
    )
    secret = "arn:aws:secretsmanager:us-east-1:123456789012:secret:x"  # in a variable for all jobs
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "INAT_WANDB_SECRET": secret}
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
