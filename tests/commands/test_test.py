"""`test`: what it takes from the run, what from the command line, and what it refuses."""

import dataclasses
import html
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from inat_job import events
from inat_job.command_options import EvaluationOptions, StatusOptions
from inat_job.commands import status, test, train
from inat_job.configuration import TEST_TAKES, configure
from inat_job.errors import BadDataError, ConflictError, UsageError
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.event_text import text_of
from inat_job.models.classifier import Classifier
from inat_job.platforms.platform import NO_PLATFORM, Platform
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage import open_store
from tests.harness.job_runs import SCHEMA, settings_in
from tests.harness.made_images import tree, write_zip

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's remarks on a trainer without workers and loggers


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a data set, a cache and a run of each part, named after it."""
    place = tmp_path_factory.mktemp("trained")
    write_zip(place / "x.zip", tree(train=20, test=5))
    for which in ("a", "b"):
        train.run(settings_of_run(place, which), StopFlag(), time.perf_counter())
    return place


def settings_of_run(place: Path, which: str = "a") -> Settings:
    small = {"data.uri": str(place / "x.zip"), "data.image_size": "32", "run.run_id": which, "run.pictures": "false"}
    recipe = {"train.epochs": "1", "train.batch_size": "8", "train.accumulate": "2", "train.precision": "bf16"}
    where = {"run.output": str(place / "runs"), "data.cache_dir": str(place / "cache"), "tracker.mode": "off"}
    models = {
        "a": {"model.filters": "4", "model.dense": "8"},
        "b": {"model.backbone": "resnet18", "model.weights": "none", "model.strategy": "head"},
    }
    return configure(which, small | recipe | where | models[which], [], None).settings


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    shutil.copytree(trained, tmp_path / "place")
    return tmp_path / "place"


def evaluated(
    place: Path,
    run: str = "a",
    file: str | None = None,
    name: str = "",
    tta: str = "none",
    pictures: bool = False,
    **changes: str,
) -> dict[str, Any]:
    """The report of a test of a run, `name` by default test-<run>; `dotted__names` stand for section.field."""
    flags = {"run.output": str(place / "runs"), "data.cache_dir": str(place / "cache"), "tracker.mode": "off"}
    flags |= {name.replace("__", "."): value for name, value in changes.items()}
    flags |= {} if pictures else {"run.pictures": "false"}  # which take longer than the test
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


def test_precision_of_the_run_is_not_that_of_its_test(place: Path) -> None:
    made = test.settings_of(str(place / "runs" / "a"), {}, [], None)
    assert settings_of_run(place).train.precision == "bf16"
    assert (made.settings.train.precision, made.settings.train.epochs) == ("auto", 1)
    assert 'precision = "auto"' in made.text(TEST_TAKES)


@pytest.mark.soak
def test_precision_is_float32_unless_given(place: Path) -> None:
    of_run = report_of(place, "a")["environment"]["execution"]
    assert (of_run["precision"], of_run["evaluation_precision"]) == ("bf16", "fp32")
    for given, precision in ((None, "fp32"), ("bf16", "bf16"), ("auto", "fp32")):
        changes = {"train__precision": given} if given else {}
        execution = evaluated(place, **changes)["environment"]["execution"]
        assert execution["precision"] == execution["evaluation_precision"] == precision
    assert torch.get_float32_matmul_precision() == "highest"


def test_larger_size_than_the_runs_own(place: Path) -> None:
    own, larger = report_of(place, "a"), evaluated(place, data__test_size="48")
    assert (larger["settings"]["data"]["image_size"], larger["settings"]["data"]["test_size"]) == (32, 48)
    assert larger["model"]["macs"] > 2 * own["model"]["macs"]
    assert larger["test"]["loss"] != own["test"]["loss"]
    with pytest.raises(UsageError, match="--test-size is 33: it must be at least --image-size, 64"):
        evaluated(place, data__image_size="64", data__test_size="33")


def test_run_trains_with_its_precision_and_is_evaluated_in_float32(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = set()
    original = Classifier.forward

    def forward(self: Classifier, batch: Any) -> torch.Tensor:
        logits = original(self, batch)
        fn = self.trainer.state.fn
        seen.add((fn.value, logits.dtype, torch.backends.cudnn.allow_tf32))
        return logits

    monkeypatch.setattr(Classifier, "forward", forward)
    train.run(settings_in(tmp_path, trained / "x.zip", train__precision="bf16"), StopFlag(), time.perf_counter())
    assert {each for each in seen if each[0] == "predict"} == {("predict", torch.float32, False)}
    assert {each for each in seen if each[0] == "fit"} == {("fit", torch.bfloat16, True)}


def test_batch_size_need_not_fit_run_or_data(place: Path) -> None:
    kept = evaluated(place, train__precision="fp32")["test"]
    assert evaluated(place, train__precision="fp32", train__batch_size="7")["test"]["n"] == kept["n"]
    few = write_zip(place / "few.zip", tree(train=2, test=9))
    assert evaluated(place, data__uri=str(few))["test"]["n"] == 27


def test_labels_of_the_run_that_decide_on_other_data_are_named(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tree(train=4, test=2)
    parts = {name: name.split("/") for name in images if name.endswith(".jpg") and "MACOSX" not in name}
    rows = [f"{name},{part[-2]},{'train' if part[-3] == 'train' else 'test'}" for name, part in parts.items()]
    (place / "labels.csv").write_text("\n".join(["path,label,split", *rows]))
    settings = json.loads((place / "runs/a/config.json").read_text())["settings"]
    settings["data"]["labels"] = str(place / "labels.csv")
    change_config(place, settings=settings)
    other = str(write_zip(place / "other.zip", images))
    assert evaluated(place, data__uri=other)["test"]["n"] == 6
    assert "those of the run's --labels" in capsys.readouterr().out
    evaluated(place, data__uri=other, data__labels="none")
    assert "those of the run's --labels" not in capsys.readouterr().out


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
    lists = r"learned 3 classes \(Ants, Bees, Cats\), and --data has 3 \(Bees, Cats, Wasps\)"
    with pytest.raises(ConflictError, match=f"{lists}; only the model has Ants and only --data has Wasps"):
        evaluated(place, data__uri=str(other))
    fewer = {name: data for name, data in tree(train=20, test=5).items() if "Ants" not in name}
    with pytest.raises(
        ConflictError, match=r"learned 3 classes \(.*\), and --data has 2 \(.*\); only the model has Ants:"
    ):
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


def parts_of(report: dict[str, Any]) -> dict[str, Any]:
    """What a test of a run must find again."""
    return {
        **{name: report[name] for name in ("val", "test", "temperature", "baseline", "model")},
        "data": report["data"] | {"uri": ""},
        "checkpoint": report["checkpoint"] | {"uri": ""},
    }


@pytest.mark.parametrize("run", ["a", "b"])
def test_test_has_the_digits_of_the_runs_report(place: Path, run: str) -> None:
    original = report_of(place, run)
    found = evaluated(place, run)
    assert parts_of(found) == parts_of(original)
    files = [place / "runs" / name / "predictions.csv" for name in (run, f"test-{run}")]
    assert files[0].read_bytes() == files[1].read_bytes()
    table = PredictionTable.read_csv(files[0])
    assert (len(table.split("val")), len(table.split("test"))) == (12, 15)
    assert len(set(table.ids)) == 27


@pytest.mark.soak
def test_test_has_the_digits_of_the_report_on_s3(tmp_path: Path, s3_bucket: str, trained: Path) -> None:
    output = f"s3://{s3_bucket}/runs"
    train.run(settings_in(tmp_path, trained / "x.zip", run__output=output), StopFlag(), time.perf_counter())
    flags = {"run.output": output, "data.cache_dir": str(tmp_path / "elsewhere"), "tracker.mode": "off"}
    made = test.settings_of(f"{output}/r", flags, [], None)
    test.run_all([made], [f"{output}/r"], EvaluationOptions(), StopFlag(), time.perf_counter())
    store = open_store(output)
    original, found = (json.loads(store.read(f"{name}/report.json")) for name in ("r", "test-r"))
    assert parts_of(found) == parts_of(original)
    assert store.read("r/predictions.csv") == store.read("test-r/predictions.csv")


@pytest.mark.parametrize("run", ["a", "b"])
def test_exported_model_has_the_digits_of_its_run(place: Path, run: str) -> None:
    original = report_of(place, run)
    found = evaluated(place, f"{run}/model", name=f"test-{run}")
    assert found["test"] == original["test"]
    assert (found["val"], found["temperature"]) == (None, original["temperature"])
    assert found["settings"]["train"]["lr"] == original["settings"]["train"]["lr"]
    digest = json.loads((place / "runs" / run / "model" / "model.json").read_text())["weights"]["sha256"]
    assert found["checkpoint"] == {
        "uri": f"{place}/runs/{run}/model/model.safetensors", "sha256": digest, "epoch": None, "step": None
    }  # fmt: skip


@pytest.mark.parametrize("run", ["a", "b"])
def test_exported_model_without_its_run(place: Path, run: str) -> None:
    original = report_of(place, run)
    (place / "runs" / run / "model").rename(place / "runs" / "my model")
    shutil.rmtree(place / "runs" / run)
    data = {"data__uri": str(place / "x.zip"), "train__batch_size": "8"}
    found = evaluated(place, "my model", name="test-my-model", **data)
    assert found["test"] == original["test"]
    assert found["settings"]["train"].keys() == {
        "batch_size", "accelerator", "precision", "deterministic", "resident_share"
    }  # fmt: skip
    assert found["model"]["trainable_parameters"] is None
    page = (place / "runs" / "test-my-model" / "report.html").read_text()
    assert not [words for words in ("pretrained", "trained from scratch", "of random weights") if words in page]
    assert found["settings"]["data"]["image_size"] == 32


@pytest.mark.parametrize(
    "damage",
    [
        lambda model: (model / "model.safetensors").unlink(),
        lambda model: (model / "model.safetensors").write_bytes(b"x"),
        lambda model: [(model / "model.safetensors").unlink(), os.mkfifo(model / "model.safetensors")],
        lambda model: (model / "model.json").write_text("{}"),
        lambda model: (model / "model.json").write_text("[1]"),
        lambda model: change_json(model / "model.json", architecture={"kind": "other"}),
        lambda model: change_json(model / "model.json", classes=[1, 2, 3]),
        lambda model: change_json(model / "model.json", temperature="hot"),
        lambda model: change_json(model / "model.json", temperature=0),
        lambda model: change_json(model / "model.json", temperature=1e-320),
        lambda model: change_json(model / "model.json", normalisation=None),
        lambda model: change_json(model / "model.json", normalisation={"mean": [1, 2, 3], "std": [0, 0, 0]}),
        lambda model: change_json(model / "model.json", classes=["Ants", "Ants", "Bees"]),
        lambda model: change_filters(model / "model.json"),
        lambda model: change_json(model / "model.json", preprocessing={"image_size": 1e9, "eval_crop": 0.9}),
    ],
)
def test_damaged_model_is_bad_data(place: Path, damage: Callable[[Path], Any]) -> None:
    (place / "runs" / "a" / "model").rename(place / "runs" / "m")
    damage(place / "runs" / "m")
    with pytest.raises(BadDataError, match="model"):
        evaluated(place, "m", data__uri=str(place / "x.zip"))


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_filters(path: Path) -> None:
    architecture = json.loads(path.read_text())["architecture"]
    change_json(path, architecture=architecture | {"filters": [0] * 5})


def test_data_the_run_may_have_trained_on_keep_the_models_temperature(place: Path) -> None:
    change_json(place / "runs" / "a" / "model" / "model.json", temperature=1.625)
    other = write_zip(place / "other.zip", tree(train=9, test=6))
    found = evaluated(place, data__uri=str(other))
    assert (found["val"], found["temperature"], found["test"]["n"]) == (None, 1.625, 18)
    shutil.rmtree(place / "runs" / "a" / "model")
    assert evaluated(place, data__uri=str(other))["temperature"] == 1.0


def test_accuracy_without_the_test_images_that_are_in_train(place: Path) -> None:
    files = tree(train=20, test=5)
    for name in ("Ants/00.jpg", "Bees/01.jpg"):
        files[f"some/where/val/{name}"] = files[f"some/where/train/{name}"]
    found = evaluated(place, data__uri=str(write_zip(place / "both.zip", files)))
    assert (found["test"]["n"], found["data"]["in_both_train_and_test"]) == (15, 2)
    assert found["test"]["not_in_train"]["n"] == 13
    table = PredictionTable.read_csv(place / "runs" / "test-a" / "predictions.csv").split("test")
    right = [name for name, is_right in zip(table.ids, table.predicted == table.labels, strict=True) if is_right]
    assert found["test"]["correct"] == len(right)
    assert found["test"]["not_in_train"]["correct"] == len(set(right) - {"test/Ants/00.jpg", "test/Bees/01.jpg"})


def test_flip_is_reported_beside_the_plain_accuracy(place: Path) -> None:
    plain = report_of(place, "b")
    events.configure(text=True)  # which must know the phase
    found = evaluated(place, "b", tta="flip")
    assert found["test"] == plain["test"]
    assert (found["test_tta"]["tta"], found["test_tta"]["n"]) == ("flip", 15)
    assert found["test_tta"]["loss"] != plain["test"]["loss"]
    kept = PredictionTable.read_csv(place / "runs" / "test-b" / "predictions.csv")
    assert kept.split("test").losses.mean() == pytest.approx(plain["test"]["loss"], rel=1e-15)


def evaluate_several(place: Path, *names: str, platform: Platform = NO_PLATFORM, **changes: str) -> None:
    flags = {"run.output": str(place / "runs"), "data.cache_dir": str(place / "cache"), "tracker.mode": "off"}
    flags |= {name.replace("__", "."): value for name, value in changes.items()}
    checkpoints = [str(place / "runs" / name) for name in names]
    made = [test.settings_of(each, flags, [], None) for each in checkpoints]
    test.run_all(made, checkpoints, EvaluationOptions("flip"), StopFlag(), time.perf_counter(), platform)


@pytest.mark.soak
def test_several_checkpoints_have_a_folder_each_and_a_table(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_several(place, "a", "b", "a/checkpoints/6.ckpt", "a/model")
    out = capsys.readouterr().out
    expected = {"test-a-best": "a", "test-b": "b", "test-a-6": "a", "test-a-model": "a"}
    for name, run in expected.items():
        assert report_of(place, name)["test"] == report_of(place, run)["test"]
    logged = [json.loads(line) for line in out.splitlines()]
    ends = [event["message"] for event in logged if event["event"] == "done"]
    assert [each.partition(": Test accuracy")[0] for each in ends] == list(expected)
    [results] = [event["results"] for event in logged if event["event"] == "tested"]
    assert [each["checkpoint"].rpartition("runs/")[2] for each in results] == [
        "a/checkpoints/6.ckpt", "b/checkpoints/6.ckpt", "a/checkpoints/6.ckpt", "a/model/model.safetensors"
    ]  # fmt: skip
    assert results[1]["accuracy"] == report_of(place, "b")["test"]["accuracy"]
    assert results[1]["tta_accuracy"] == report_of(place, "test-b")["test_tta"]["accuracy"]
    lines = text_of("tested", {"results": results}).splitlines()
    assert len({len(line) for line in lines if line}) == 1, lines


@pytest.mark.soak
def test_page_of_a_test_has_its_command(place: Path) -> None:
    data = str(place / "x.zip")
    changes = {"run__run_id": "again", "data__uri": data, "train__batch_size": "7"}
    evaluated(place, "a/model", name="again", tta="flip", pictures=True, **changes)
    page = html.unescape((place / "runs" / "again" / "report.html").read_text())
    [command] = re.findall("<code>(.* test .*)</code>", page)
    words = shlex.split(command)
    options = dict(zip(words[words.index("test") + 1 :: 2], words[words.index("test") + 2 :: 2], strict=True))
    assert options == {
        "--checkpoint": f"{place}/runs/a/model",
        "--data": data,
        "--cache-dir": str(place / "cache"),
        "--output": str(place / "runs"),
        "--wandb": "off",
        "--batch-size": "7",
        "--run-id": "again",
        "--tta": "flip",
    }
    assert "finds the run finished" not in page
    assert "finds the run finished" in (place / "runs" / "a" / "report.html").read_text()
    assert report_of(place, "a")["command"] == "train"
    assert report_of(place, "again")["command"] == "test"


def test_files_of_a_model_stand_for_its_folder_or_are_refused(place: Path) -> None:
    named = test.settings_of(str(place / "runs" / "a" / "model" / "model.safetensors"), {}, [], None)
    assert named.settings == test.settings_of(str(place / "runs" / "a" / "model"), {}, [], None).settings
    for file in ("model.onnx", "model.pt2"):
        with pytest.raises(UsageError, match=f"name its folder, {place}/runs/a/model"):
            test.settings_of(f"{place}/runs/a/model/{file}", {}, [], None)


def test_folder_of_a_test_is_no_checkpoint(place: Path) -> None:
    evaluated(place)
    with pytest.raises(
        BadDataError, match=rf"the folder of a test of {place}/runs/a/checkpoints/\d+.ckpt: name that run"
    ):
        evaluated(place, "test-a")


def test_several_checkpoints_need_different_folders(place: Path) -> None:
    with pytest.raises(UsageError, match="--run-id is x, but there are 2 checkpoints"):
        evaluate_several(place, "a", "b", run__run_id="x")
    with pytest.raises(UsageError, match=r"--checkpoint names .*/runs/a twice"):
        evaluate_several(place, "a", "b", "a")
    with pytest.raises(ConflictError, match="SageMaker collects the result of one checkpoint"):
        evaluate_several(place, "a", "b", platform=Platform("SageMaker", results_folder=place))


def test_report_of_version_1_is_still_read(trained: Path, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By `status`, a resume of the finished run, a test of it, and what a platform collects."""
    report = report_of(place, "a")
    sections = ("started", "finished", "temperature", "baseline")
    split = ("n", "correct", "accuracy", "ci95", "loss", "ece", "per_class", "confusion")
    old = {name: value for name, value in report.items() if name not in sections} | {"schema_version": 1}
    for name in ("val", "test"):
        old[name] = {field: report[name][field] for field in split}
    (place / "runs" / "a" / "report.json").write_text(json.dumps(old))
    (place / "runs" / "a" / "predictions.csv").unlink()
    model = place / "runs" / "a" / "model" / "model.json"
    description = json.loads(model.read_text())
    del description["temperature"]
    model.write_text(json.dumps(description))
    change_config(place, started=None)

    settings = dataclasses.replace(settings_of_run(place), data=settings_of_run(trained).data)
    status.run(settings, str(place / "runs" / "a"), StatusOptions(), StopFlag())
    seen = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (seen["state"], seen["test_accuracy"]) == ("finished", report["test"]["accuracy"])
    platform = Platform("SageMaker", model_folder=place / "ml", results_folder=place / "data")
    train.run(settings, StopFlag(), time.perf_counter(), platform)
    assert "Already finished" in capsys.readouterr().out
    assert json.loads((place / "data" / "report.json").read_text()) == old
    assert parts_of(evaluated(place)) == parts_of(report)
    assert evaluated(place, "a/model", name="test-a")["temperature"] == 1.0
