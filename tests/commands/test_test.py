"""`test`: what it takes from the run, what from the command line, and what it refuses."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from inat_job.command_options import EvaluationOptions
from inat_job.commands import test, train
from inat_job.configuration import configure
from inat_job.errors import BadDataError, ConflictError, UsageError
from inat_job.signals import StopFlag
from tests.harness.job_runs import SCHEMA
from tests.harness.made_images import tree, write_zip

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's remarks on a trainer without workers and loggers


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, a cache and a run of each part, named after it."""
    place = tmp_path_factory.mktemp("trained")
    small = {"data.uri": str(write_zip(place / "x.zip", tree(train=20, test=5))), "data.image_size": "32"}
    recipe = {"train.epochs": "1", "train.batch_size": "8", "train.accumulate": "2", "train.precision": "bf16"}
    where = {"run.output": str(place / "runs"), "data.cache_dir": str(place / "cache"), "tracker.mode": "off"}
    for which, model in (
        ("a", {"model.filters": "4", "model.dense": "8"}),
        ("b", {"model.backbone": "resnet18", "model.weights": "none", "model.strategy": "head"}),
    ):
        flags = small | recipe | where | model | {"run.run_id": which}
        train.run(configure(which, flags, [], None).settings, StopFlag(), time.perf_counter())
    return place


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(trained, tmp_path / "place")
    return tmp_path / "place"


def evaluated(
    place: Path, run: str = "a", file: str | None = None, name: str = "", tta: str = "none", **changes: str
) -> dict[str, Any]:
    """The report of a test of a run, `name` by default test-<run>; `dotted__names` stand for section.field."""
    flags = {"run.output": str(place / "runs"), "data.cache_dir": str(place / "cache"), "tracker.mode": "off"}
    flags |= {name.replace("__", "."): value for name, value in changes.items()}
    checkpoint = str(place / "runs" / run)
    made = test.settings_of(checkpoint, flags, [], file)
    test.run_all([made], [checkpoint], EvaluationOptions(tta), StopFlag(), time.perf_counter())
    return report_of(place, name or f"test-{run}")


def report_of(place: Path, run: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((place / "runs" / run / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    return report


def change_config(place: Path, **changes: Any) -> None:
    path = place / "runs" / "a" / "config.json"
    stored = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in stored.items() if value is not None}))


def test_precision_is_the_runs_unless_given(place: Path) -> None:
    for changes, precision in (({}, "bf16"), ({"train__precision": "fp32"}, "fp32")):
        report = evaluated(place, **changes)
        assert report["environment"]["execution"]["precision"] == precision


def test_batch_size_need_not_fit_run_or_data(place: Path) -> None:
    kept = evaluated(place, train__precision="fp32")["test"]
    assert evaluated(place, train__precision="fp32", train__batch_size="7")["test"]["n"] == kept["n"]
    few = write_zip(place / "few.zip", tree(train=2, test=9))
    assert evaluated(place, data__uri=str(few))["test"]["n"] == 27


def test_startup_time_excludes_the_evaluation(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = test.predict_splits

    def slow(*args: Any, **options: Any) -> Any:
        time.sleep(1.0)
        return original(*args, **options)

    monkeypatch.setattr(test, "predict_splits", slow)
    timing = evaluated(place)["timing"]
    assert timing["startup_s"] <= timing["total_s"] - 1


@pytest.mark.parametrize("known_by", ["config.json", "model.json"])
def test_other_classes_are_refused(place: Path, known_by: str) -> None:
    if known_by == "model.json":
        change_config(place, classes=None)
    renamed = {name.replace("Ants", "Wasps"): data for name, data in tree(train=20, test=5).items()}
    other = write_zip(place / "other.zip", renamed)
    with pytest.raises(ConflictError, match="only the model has Ants and only --data has Wasps"):
        evaluated(place, data__uri=str(other))
    fewer = {name: data for name, data in tree(train=20, test=5).items() if "Ants" not in name}
    with pytest.raises(ConflictError, match="learned 3 classes and --data has 2; only the model has Ants:"):
        evaluated(place, data__uri=str(write_zip(place / "fewer.zip", fewer)))


def test_config_file_cannot_change_what_the_run_fixes(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "pb.toml"
    file.write_text('[model]\nstrategy = "full"\n[train]\nlr = 0.5\nbatch_size = 6\n')
    monkeypatch.setenv("INAT_EPOCHS", "9")
    settings = evaluated(place, "b", str(file))["settings"]
    assert (settings["model"]["strategy"], settings["train"]["lr"], settings["train"]["epochs"]) == ("head", 3e-3, 1)
    assert settings["train"]["batch_size"] == 6


@pytest.mark.parametrize("key", ["model.strategy", "train.lr", "run.resume"])
def test_set_without_effect_is_refused(place: Path, key: str) -> None:
    with pytest.raises(UsageError, match=f"--set {key} does nothing here"):
        test.settings_of(str(place / "runs" / "b"), {}, [f"{key}=1"], None)


def test_local_data_is_found_from_another_folder(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = json.loads((place / "runs" / "a" / "config.json").read_text())
    assert Path(stored["settings"]["data"]["uri"]).is_absolute()
    monkeypatch.chdir(tmp_path)
    assert evaluated(place)["test"]["n"] == 15


def test_run_of_an_earlier_version_is_tested(place: Path) -> None:
    """One begun when --compile could be unset, stored as null."""
    stored = json.loads((place / "runs" / "a" / "config.json").read_text())["settings"]
    change_config(place, settings={**stored, "train": {**stored["train"], "compile": None}})
    assert evaluated(place)["settings"]["train"]["compile"] is False


def test_compiled_run_is_tested_without_a_compiler(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = json.loads((place / "runs" / "a" / "config.json").read_text())["settings"]
    change_config(place, settings={**stored, "train": {**stored["train"], "compile": True}})
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert evaluated(place)["environment"]["execution"]["compile"] is False
    assert "compiler" not in capsys.readouterr().out


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"part": "c", "settings": {}, "execution": {}}'])
def test_damaged_config_is_bad_data(place: Path, text: str) -> None:
    (place / "runs" / "a" / "config.json").write_text(text)
    with pytest.raises(BadDataError, match=r"config\.json is"):
        evaluated(place)


def test_folder_of_another_run_is_refused(place: Path) -> None:
    (place / "runs" / "test-a" / "checkpoints").mkdir(parents=True)
    (place / "runs" / "test-a" / "checkpoints" / "6.ckpt").touch()
    with pytest.raises(ConflictError, match="so their run is unknown"):
        evaluated(place)
    with pytest.raises(ConflictError, match="is a training run"):
        evaluated(place, run__run_id="b")
