"""The main job in one process: a whole run, its run folder, and every way of resuming it."""

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from inat_job.checkpoints import training_state as state
from inat_job.command_options import EvaluationOptions
from inat_job.commands import test as evaluate
from inat_job.data import layout
from inat_job.data.module import ImageDataModule
from inat_job.errors import BadDataError, ConflictError, Preempted, TransientError, UsageError
from inat_job.models.classifier import Classifier
from inat_job.run.prepare_images import prepare_images
from inat_job.run.timing import Clock
from inat_job.settings import Settings
from inat_job.signals import StopFlag
from inat_job.storage import open_store
from inat_job.storage.local import draft_of
from inat_job.training import run as train
from tests.harness.in_process import in_process
from tests.harness.job_runs import SCHEMA, SMALLER_B, Make, StopAfter, model_of, report_of, run
from tests.harness.made_images import tree, write_tar, write_zip

WITH_EVERYTHING = {
    "train__ema": "0.9",
    "train__optimiser": "muon",
    "train__lr": "0.02",
    "train__epochs": "4",
    "train__flip": "alternating",
    "train__trivial_augment": "1",
    "train__erase": "0.5",
    "train__mixup": "0.2",
    "train__cutmix": "1",
    "train__mix_until": "0.6",
    "data__image_size": "64",
    "train__start_size": "32",
    "data__test_size": "80",
}
"""Each part of the recipe that is off by default and could make a resume inexact."""

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's remarks on a trainer without workers and loggers


def test_run_folder_is_complete_and_report_valid(settings: Make) -> None:
    run(settings(run__price_per_hour="3600", run__pictures="true"))
    folder = Path(settings().run.output) / "r"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names >= {
        "report.json",
        "report.html",
        "predictions.csv",
        "config.json",
        "metrics.jsonl",
        "checkpoints/latest.json",
        "checkpoints/12.ckpt",
        "checkpoints/12.json",
        "model/model.safetensors",
        "model/model.json",
        "model/README.md",
        "plots/confusion.png",
        "plots/curves.png",
    }
    report = report_of(settings())
    jsonschema.validate(report, SCHEMA)
    test = report["test"]
    assert (report["status"], report["part"], report["run_id"], test["n"]) == ("done", "a", "r", 15)
    assert sum(map(sum, test["confusion"])) == 15
    assert test["accuracy"] == test["correct"] / 15
    assert (report["data"]["n_train"], report["data"]["n_val"], report["data"]["n_test"]) == (48, 12, 15)
    assert report["history"] == [{"started_step": 0, "ended_step": 12, "why": "finished"}]
    cost = report["cost"]
    assert cost["total"] == pytest.approx(cost["device_seconds"], abs=1e-3)
    assert cost["device_seconds"] == pytest.approx(report["timing"]["total_s"], abs=1.0)
    assert report["environment"]["execution"]["compile"] is False  # a run of some seconds
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "val_accuracy" in row] == [6, 12]
    assert any("train_loss" in row for row in rows)


@pytest.mark.soak
def test_local_and_s3_results_are_equal(settings: Make, archive: Path, s3_bucket: str) -> None:
    open_store(f"s3://{s3_bucket}").put("x.zip", archive)
    local = settings()
    remote = settings(data__uri=f"s3://{s3_bucket}/x.zip", run__output=f"s3://{s3_bucket}/out")
    run(local)
    run(remote)
    assert report_of(local)["test"] == report_of(remote)["test"]
    assert model_of(local) == model_of(remote)
    predictions = [open_store(f"{each.run.output}/r").read("predictions.csv") for each in (local, remote)]
    assert predictions[0] == predictions[1]
    descriptions = [json.loads(open_store(f"{each.run.output}/r").read("model/model.json")) for each in (local, remote)]
    assert [each["temperature"] for each in descriptions] == [report_of(local)["temperature"]] * 2
    keys = {entry.key for entry in open_store(f"s3://{s3_bucket}/out/r").list()}
    assert {"report.json", "report.html", "config.json", "metrics.jsonl", "checkpoints/latest.json"} <= keys


def test_finished_run_is_left_alone(settings: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run(settings())
    before = report_of(settings())
    capsys.readouterr()
    run(settings(), stop_after=0)
    assert "Already finished" in capsys.readouterr().out
    assert report_of(settings()) == before


def test_other_settings_under_the_same_id_are_refused(settings: Make) -> None:
    run(settings())
    with pytest.raises(ConflictError, match=r"train.epochs is 2 in the run, 3 here.*change --run-id"):
        run(settings(train__epochs="3"))
    with pytest.raises(ConflictError, match="other settings"):
        run(settings("b"))


def test_deleted_report_is_made_again_without_training(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run(settings())
    before = report_of(settings())
    (Path(settings().run.output) / "r" / "report.json").unlink()
    monkeypatch.setattr(train, "fit_errors", lambda *args: pytest.fail("trained again"))
    run(settings())
    after = report_of(settings())
    for section in ("test", "val", "checkpoint", "throughput"):
        assert after[section] == before[section]
    assert after["history"] == [*before["history"], {"started_step": 12, "ended_step": 12, "why": "finished"}]


@pytest.mark.soak
def test_trainable_parameters_do_not_depend_on_resume(settings: Make) -> None:
    made = settings("b", model__strategy="head", train__epochs="1")
    run(made)
    before = report_of(made)["model"]
    (Path(made.run.output) / "r" / "report.json").unlink()
    run(made)
    assert report_of(made)["model"] == before
    assert before["trainable_parameters"] == 512 * 3 + 3


@pytest.mark.parametrize(
    ("which", "changes"),
    [
        ("a", {"train__precision": "fp32"}),
        pytest.param("a", {"train__precision": "bf16"}, marks=pytest.mark.soak),
        pytest.param("a", {"train__accumulate": "2"}, marks=pytest.mark.soak),
        ("a", WITH_EVERYTHING),
        pytest.param("a", {"train__final": "true", "train__sampling": "balanced"}, marks=pytest.mark.soak),
        pytest.param("a", {"train__class_weights": "balanced"}, marks=pytest.mark.soak),
        pytest.param(
            "a", {"train__early_stop": "2", "train__epochs": "30", "train__lr": "1e-6"}, marks=pytest.mark.soak
        ),
        ("b", {"model__strategy": "head"}),
        pytest.param("b", {"model__strategy": "last-k"}, marks=pytest.mark.soak),
        pytest.param("b", {"model__strategy": "gradual", "train__epochs": "3"}, marks=pytest.mark.soak),
        pytest.param("b", {"model__strategy": "full"}, marks=pytest.mark.soak),
    ],
)
def test_resume_is_bit_exact(which: str, changes: dict[str, str], settings: Make, tmp_path: Path) -> None:
    changes = changes if which == "a" else changes | SMALLER_B
    whole = settings(which, run__output=str(tmp_path / "whole"), **changes)
    run(whole)
    stopped = settings(which, **changes)
    attempts = 0
    while not (Path(stopped.run.output) / "r" / "report.json").exists():
        try:
            # The images are prepared already, so each attempt gets a few steps further.
            run(stopped, stop_after=2 + attempts)
        except Preempted:
            attempts += 1
        assert attempts < 60
    assert attempts > 3
    assert model_of(stopped) == model_of(whole)
    assert report_of(stopped)["test"] == report_of(whole)["test"]
    assert report_of(stopped)["cost"]["device_seconds"] > report_of(stopped)["timing"]["total_s"]
    rows = [(Path(each.run.output) / "r" / "metrics.jsonl").read_text() for each in (stopped, whole)]
    assert rows[0] == rows[1]
    assert [attempt["why"] for attempt in report_of(stopped)["history"]].count("preempted") > 1


def test_average_is_validated_tested_and_exported(settings: Make) -> None:
    made = settings(train__ema="0.9", train__precision="fp32")
    run(made)
    folder = Path(made.run.output) / "r"
    report = report_of(made)
    checkpoint = state.read(folder / "checkpoints" / f"{report['checkpoint']['step']}.ckpt")
    averages, raw = checkpoint["state_dict"], checkpoint["raw_weights"]
    assert any(not torch.equal(averages[name], raw[name]) for name in raw)
    exported = load_file(folder / "model" / "model.safetensors")
    assert all(torch.equal(averages[f"network.{name}"], each) for name, each in exported.items())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    validated = [row["val_loss"] for row in rows if "val_loss" in row and row["step"] == checkpoint["global_step"]]
    assert validated == pytest.approx([report["val"]["loss"]], rel=1e-4)


def events_of(capsys: pytest.CaptureFixture[str], name: str) -> list[dict[str, Any]]:
    """The events of this name since the last look."""
    lines = map(json.loads, capsys.readouterr().out.splitlines())
    return [line for line in lines if line["event"] == name]


def test_resume_names_step_and_epoch(settings: Make, capsys: pytest.CaptureFixture[str]) -> None:
    made = settings(train__epochs="3", run__checkpoint_minutes="0")
    with pytest.raises(Preempted, match=r"Stopped: step \d+ is stored in .*/r/checkpoints; run the same command again"):
        run(made, stop_after=90)
    step = max(json.loads(file.read_text())["step"] for file in _manifests(made))
    capsys.readouterr()
    run(made)
    [event] = events_of(capsys, "resume")
    assert (event["step"], event["epoch"], event["epochs"], event["ended"]) == (step, step // 6 + 1, 3, "")
    (Path(made.run.output) / "r" / "report.json").unlink()
    run(made)
    [event] = events_of(capsys, "resume")
    assert (event["step"], event["epoch"], event["ended"]) == (18, 3, "finished")


def test_log_of_a_run(settings: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run(settings())
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    [introduction] = [line for line in lines if line["event"] == "introduction"]
    assert introduction["images"] == {"train": 48, "validation": 12, "test": 15}
    assert (introduction["classes"], introduction["strategy"], introduction["ranks"]) == (3, None, 1)
    assert introduction["parameters"] == introduction["trainable_parameters"] > 0
    epochs = [line for line in lines if line["event"] == "epoch"]
    assert [(line["epoch"], line["epochs"]) for line in epochs] == [(1, 2), (2, 2)]
    assert all(line["train_loss"] > 0 and line["lr"] > 0 for line in epochs)
    assert (epochs[0]["best"], epochs[1]["left_s"]) == (True, 0.0)
    assert [line["phase"] for line in lines if line["event"] == "phase"][-4:] == [
        *("validate", "final-validation", "test", "upload")
    ]
    result = lines[-2]
    report = report_of(settings())
    assert (result["event"], lines[-1]["event"]) == ("result", "done")
    assert (result["accuracy"], result["ci95"]) == (report["test"]["accuracy"], report["test"]["ci95"])
    assert result["recall"] == {name: [each["n"], each["recall"]] for name, each in report["test"]["per_class"].items()}


def test_run_of_an_earlier_version_resumes(settings: Make, tmp_path: Path) -> None:
    """One begun when --compile could be unset: its config.json has null, and its fingerprint is the same."""
    made = settings(run__checkpoint_minutes="0")
    with pytest.raises(Preempted):
        run(made, stop_after=60)
    path = Path(made.run.output) / "r" / "config.json"
    stored = json.loads(path.read_text())
    stored["settings"]["train"]["compile"] = None
    path.write_text(json.dumps(stored))
    run(made)
    whole = settings(run__output=str(tmp_path / "whole"))
    run(whole)
    assert model_of(made) == model_of(whole)
    with pytest.raises(ConflictError, match=r"other settings \(train.seed is 0 in the run, 1 here\)"):
        run(settings(train__seed="1"))


@pytest.mark.soak
def test_killed_run_resumes_on_a_new_machine(
    settings: Make, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote = settings(run__output=f"s3://{s3_bucket}", run__checkpoint_minutes="0")
    with monkeypatch.context() as patch:
        patch.setattr("inat_job.training.checkpoint_callback.CheckpointCallback.on_validation_batch_end", _killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(remote)
    assert json.loads(open_store(f"s3://{s3_bucket}/r").read("checkpoints/6.json"))["validate"] is True
    elsewhere = settings(
        run__output=f"s3://{s3_bucket}", run__checkpoint_minutes="0", data__cache_dir=str(tmp_path / "new")
    )
    run(elsewhere)
    run(settings())
    assert model_of(elsewhere) == model_of(settings())
    assert report_of(elsewhere)["history"] == [
        {"started_step": 0, "ended_step": 6, "why": "failed with code 1"},
        {"started_step": 6, "ended_step": 12, "why": "finished"},
    ]
    rows = [open_store(f"{each.run.output}/r").read("metrics.jsonl") for each in (elsewhere, settings())]
    assert rows[0] == rows[1]


@pytest.mark.soak
def test_stop_at_any_moment_changes_nothing(settings: Make, tmp_path: Path) -> None:
    """Among them: in mid-epoch, at an epoch's last step, in validation, and right after it."""
    changes = {"model__strategy": "gradual", **SMALLER_B}
    whole = settings("b", run__output=str(tmp_path / "whole"), **changes)
    run(whole)
    reached = set()
    for asked in (2, 5, 6, 7, 8, 9, 12, 15):
        stopped = settings("b", run__run_id=f"stopped-{asked}", **changes)
        with pytest.raises(Preempted):
            run(stopped, stop_after=asked)
        reached.add(max((json.loads(file.read_text())["step"] for file in _manifests(stopped)), default=0))
        run(stopped)
        assert model_of(stopped) == model_of(whole), asked
    assert 6 in reached
    assert len(reached) > 4


def _manifests(settings: Settings) -> list[Path]:
    return list((Path(settings.run.output) / settings.run_id / "checkpoints").glob("[0-9]*.json"))


def _killed(*args: Any) -> None:
    raise RuntimeError("killed")


@pytest.mark.parametrize(
    ("which", "changes"),
    [
        ("a", {}),
        pytest.param("b", {**SMALLER_B, "model__strategy": "head", "train__epochs": "4"}, marks=pytest.mark.soak),
    ],
)
def test_padding_of_evaluation_changes_no_result(
    which: str, changes: dict[str, str], settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the 12 validation and 15 test images, and of the 48 of a view of features, all in batches of 9."""
    changes = {**changes, "train__batch_size": "9", "train__precision": "fp32"}
    as_on_cpu = settings(which, **changes)
    run(as_on_cpu)
    monkeypatch.setattr(
        ImageDataModule, "_on_gpu", property(lambda self: True, lambda self, value: None), raising=False
    )
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    shapes = []
    forward = Classifier.forward
    monkeypatch.setattr(Classifier, "forward", lambda self, batch: shapes.append(len(batch[0])) or forward(self, batch))
    as_on_gpu = settings(which, **changes, run__run_id="gpu", data__cache_dir=as_on_cpu.data.cache_dir + "2")
    run(as_on_gpu)
    assert set(shapes) == {9}
    reports = [report_of(each) for each in (as_on_cpu, as_on_gpu)]
    for split in ("val", "test"):
        plain, padded = (report[split] for report in reports)
        assert (padded["n"], padded["confusion"]) == (plain["n"], plain["confusion"])
        assert padded["loss"] == pytest.approx(plain["loss"], rel=1e-4)
    assert [bool(report["reuse"]) for report in reports] == [which == "b"] * 2
    assert val_losses(as_on_gpu) == pytest.approx(val_losses(as_on_cpu), rel=1e-4)


def val_losses(settings: Settings) -> list[float]:
    lines = Path(settings.run.output, settings.run_id, "metrics.jsonl").read_text().splitlines()
    return [row["val_loss"] for row in map(json.loads, lines) if "val_loss" in row]


def test_early_stop_is_decided_once(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = settings(train__early_stop="2", train__epochs="30", train__lr="1e-6")
    run(stopped)
    before = report_of(stopped)
    assert before["history"][-1]["why"] == "early stop"
    (Path(stopped.run.output) / "r" / "report.json").unlink()
    monkeypatch.setattr(train, "fit_errors", lambda *args: pytest.fail("trained again"))
    run(stopped)
    assert report_of(stopped)["history"][:-1] == before["history"]


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_no_intact_checkpoint_is_an_error(settings: Make, resume: str) -> None:
    made = settings(run__checkpoint_minutes="0", train__epochs="3", run__resume=resume)
    with pytest.raises(Preempted):
        run(settings(run__checkpoint_minutes="0", train__epochs="3"), stop_after=90)
    folder = Path(made.run.output) / "r" / "checkpoints"
    before = sorted(folder.iterdir())
    for path in folder.glob("*.ckpt"):
        path.write_bytes(b"damaged")
    with pytest.raises(BadDataError, match=r"holds \d checkpoints and none is intact: .* --resume never --force"):
        run(made)
    assert sorted(folder.iterdir()) == before
    run(settings(train__epochs="3", run__resume="never", run__force="true"))


def test_damaged_checkpoints_do_not_displace_intact_ones(settings: Make, tmp_path: Path) -> None:
    made = settings(run__checkpoint_minutes="0", train__epochs="3")
    with pytest.raises(Preempted):
        run(made, stop_after=90)
    folder = Path(made.run.output) / "r" / "checkpoints"
    steps = sorted(int(path.stem) for path in folder.glob("*.ckpt"))
    for step in steps[1:]:
        (folder / f"{step}.ckpt").write_bytes(b"damaged")
    draft_of(folder / "999.ckpt").write_bytes(b"a draft of a write that was killed")
    run(made)
    assert report_of(made)["history"][1]["started_step"] == steps[0]
    assert not list(folder.glob("*.tmp"))
    whole = settings(run__output=str(tmp_path / "whole"), train__epochs="3")
    run(whole)
    assert model_of(made) == model_of(whole)


@pytest.mark.soak
def test_spooled_checkpoints_are_stored_by_the_next_attempt(
    settings: Make, s3_bucket: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from inat_job.storage.s3.s3_store import S3Store

    elsewhere = {"run__output": f"s3://{s3_bucket}", "data__cache_dir": str(tmp_path / "b")}
    with monkeypatch.context() as patch:
        patch.setattr("inat_job.training.checkpoint_callback.CheckpointCallback.on_validation_batch_end", _killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(settings(run__output=f"s3://{s3_bucket}"))
    original = S3Store.put

    def failing(self: S3Store, key: str, *args: Any, **options: Any) -> Any:
        if not key.startswith("attempts/"):
            raise TransientError(f"{key} cannot be stored.")
        return original(self, key, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(S3Store, "put", failing)
        with pytest.raises(TransientError, match="The whole run is in"):
            run(settings(**elsewhere))
    monkeypatch.setattr(train, "fit_errors", lambda *args: pytest.fail("trained again"))
    run(settings(**elsewhere))
    assert report_of(settings(**elsewhere))["status"] == "done"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda state: state["state_dict"].popitem(), ConflictError),
        (lambda state: state["optimizer_states"][0]["param_groups"].pop(), ConflictError),
        (lambda state: state.pop("loops"), BadDataError),
        (lambda state: state.pop("state_dict"), BadDataError),
    ],
)
def test_checkpoint_of_another_network_is_named(
    settings: Make, change: Callable[[Any], Any], error: type[Exception]
) -> None:
    """Although its manifest has the right hash."""
    with pytest.raises(Preempted):
        run(settings(run__checkpoint_minutes="0"), stop_after=90)
    folder = Path(settings().run.output) / "r" / "checkpoints"
    newest = max(folder.glob("*.ckpt"), key=lambda path: int(path.stem))
    content = torch.load(newest, weights_only=True)
    change(content)
    sha256, size = state.write(content, newest)
    manifest = newest.with_suffix(".json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"sha256": sha256, "size": size}))
    with pytest.raises(error, match=rf"checkpoints/{newest.name} "):
        run(settings(run__checkpoint_minutes="0"))


def test_force_follows_no_link(settings: Make, tmp_path: Path) -> None:
    run(settings())
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    (Path(settings().run.output) / "r" / "link").symlink_to(tmp_path / "precious")
    run(settings(run__resume="never", run__force="true", train__epochs="1"))
    assert (tmp_path / "precious" / "file").exists()
    assert not (Path(settings().run.output) / "r" / "link").exists()


def test_damaged_checkpoint_is_skipped(settings: Make, tmp_path: Path) -> None:
    with pytest.raises(Preempted):
        run(settings(run__checkpoint_minutes="0"), stop_after=90)
    folder = Path(settings().run.output) / "r" / "checkpoints"
    newest = max(folder.glob("*.ckpt"), key=lambda path: int(path.stem))
    newest.write_bytes(newest.read_bytes()[:-1] + b"\0")
    run(settings(run__checkpoint_minutes="0"))
    whole = settings(run__output=str(tmp_path / "whole"))
    run(whole)
    assert model_of(settings()) == model_of(whole)


def test_resume_never_and_must(settings: Make) -> None:
    with pytest.raises(BadDataError, match="--resume is must"):
        run(settings(run__resume="must"))
    with pytest.raises(UsageError, match="--force needs"):
        run(settings(run__force="true"))
    run(settings())
    with pytest.raises(ConflictError, match="add --force"):
        run(settings(run__resume="never"))
    run(settings(run__resume="never", run__force="true", train__epochs="1"))
    assert report_of(settings())["checkpoint"]["step"] == 6


def test_changed_data_is_refused(settings: Make, tmp_path: Path) -> None:
    path = write_zip(tmp_path / "y.zip", tree(train=20, test=5))
    with pytest.raises(Preempted):
        run(settings(data__uri=str(path)), stop_after=90)
    write_zip(path, tree(train=21, test=5))
    with pytest.raises(ConflictError, match="is not the one that"):
        run(settings(data__uri=str(path)))


def test_max_time_ends_training_and_tests(settings: Make) -> None:
    run(settings(train__max_time="1", train__epochs="10000"))
    report = report_of(settings())
    assert report["history"][-1]["why"] == "max-time"
    assert report["test"]["n"] == 15


@pytest.mark.soak
def test_init_from_starts_from_the_best_weights(settings: Make) -> None:
    run(settings())
    longer = settings(run__run_id="longer", run__init_from="r", train__lr="1e-8", train__epochs="1")
    run(longer)
    offline = settings("b", run__run_id="first", model__strategy="head", train__epochs="1")
    run(offline)
    run(settings("b", run__run_id="second", model__weights="/none.pth", run__init_from="first", train__epochs="1"))
    first, second = (torch.load(_best(each), weights_only=True)["state_dict"] for each in (settings(), longer))
    assert torch.allclose(first["network.output.weight"], second["network.output.weight"], atol=1e-5)
    with pytest.raises(ConflictError, match=r"another network \(Unexpected key.* \.\.\.\): use the options") as refused:
        run(settings("b", run__run_id="other", run__init_from="r"))
    assert len(str(refused.value)) < 500, "torch names every key"


def _best(settings: Settings) -> Path:
    return Path(report_of(settings)["checkpoint"]["uri"])


def test_infinite_loss_names_lr(settings: Make) -> None:
    with pytest.raises(ConflictError, match=r"not finite at step \d+: lower --lr, which is 10"):
        run(settings(train__lr="10", train__epochs="60", train__precision="bf16", train__weight_decay="10"))


def test_out_of_memory_names_batch_size(settings: Make, monkeypatch: Any) -> None:
    def hungry(*args: Any) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr("inat_job.models.classifier.Classifier.training_step", hungry)
    with pytest.raises(ConflictError, match="lower --batch-size"):
        run(settings())


def test_batch_larger_than_the_data_is_refused(settings: Make) -> None:
    for _ in range(2):  # the second time the images are in the cache
        with pytest.raises(ConflictError, match="--batch-size is 64, but there are only 48 training images: lower it"):
            run(settings(train__batch_size="64"))
        assert not Path(settings().run.output).exists(), "no run is begun"
        prepare_images(settings(), Clock(0.0), StopFlag())


@pytest.mark.parametrize("further", [{}, {"data__image_size": "64", "train__start_size": "32"}, {"part": "b"}])
def test_batch_norm_of_a_single_value_is_refused(settings: Make, further: dict[str, str]) -> None:
    with pytest.raises(ConflictError, match=r"one image at a time.*--accumulate, which is 8"):
        run(settings(train__accumulate="8", **further))


def test_one_image_at_a_time_is_trained_on_where_batch_norm_has_more_values(settings: Make) -> None:
    run(settings(train__accumulate="8", train__epochs="1", data__image_size="64"))
    assert report_of(settings())["status"] == "done"


def test_report_names_what_was_not_trained_on(settings: Make, tmp_path: Path) -> None:
    files = tree(train=20, test=5, root="") | {"train/readme.txt": b"x", "notes/a.csv": b"y"}
    blank = io.BytesIO()
    Image.new("RGB", (40, 40)).save(blank, "png")
    label = layout.find_images(list(files), "here")[0].label
    files[f"train/{label}/blank.png"] = blank.getvalue()
    run(settings(data__uri=str(write_zip(tmp_path / "y.zip", files)), train__epochs="1"))
    report = report_of(settings())
    jsonschema.validate(report, SCHEMA)
    assert [each["name"] for each in report["data"]["skipped"]] == ["notes/a.csv", "train/readme.txt"]
    assert report["data"]["blank"] == [f"train/{label}/blank.png"]
    old = report | {"data": {name: report["data"][name] for name in report["data"] if name not in ("skipped", "blank")}}
    jsonschema.validate(old, SCHEMA)


def test_refused_batch_deletes_no_run(settings: Make) -> None:
    run(settings())
    with pytest.raises(ConflictError, match="--batch-size is 64"):
        run(settings(train__batch_size="64", run__resume="never", run__force="true"))
    assert report_of(settings())["status"] == "done"


def test_batch_is_refused_before_a_tar_is_decoded(settings: Make, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("inat_job.ingest.build_cache.decode_all", lambda *_, **__: pytest.fail("decoded"))
    tar = write_tar(tmp_path / "x.tar", tree(train=20, test=5))
    with pytest.raises(ConflictError, match="--batch-size is 64, but there are only 48 training images: lower it"):
        run(settings(data__uri=str(tar), train__batch_size="64"))


@pytest.mark.soak
def test_failing_store_fails_the_job_after_training(
    settings: Make, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inat_job.storage.s3.s3_store import S3Store

    remote = settings(run__output=f"s3://{s3_bucket}")
    original = S3Store.put

    def failing(self: S3Store, key: str, *args: Any, **options: Any) -> Any:
        if key != "config.json" and not key.startswith("attempts/"):
            raise TransientError(f"{key} cannot be stored.")
        return original(self, key, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(S3Store, "put", failing)
        with pytest.raises(TransientError, match=r"The whole run is in .*spool/\w+/r/\d+:"):
            run(remote)
    monkeypatch.setattr(train, "fit_errors", lambda *args: pytest.fail("trained again"))
    run(remote)
    assert report_of(remote)["status"] == "done"
    keys = {entry.key for entry in open_store(f"s3://{s3_bucket}/r").list("checkpoints/")}
    assert {"checkpoints/6.ckpt", "checkpoints/6.json", "checkpoints/12.ckpt", "checkpoints/12.json"} <= keys


@pytest.mark.soak
def test_test_evaluates_without_training(settings: Make, tmp_path: Path) -> None:
    run(settings())
    uri = f"{settings().run.output}/r"
    flags = {"run.output": settings().run.output, "data.cache_dir": str(tmp_path / "cache"), "tracker.mode": "off"}
    for checkpoint, name in ((uri, "test-r"), (f"{uri}/checkpoints/6.ckpt", "first")):
        made = evaluate.settings_of(checkpoint, flags | ({} if name == "test-r" else {"run.run_id": name}), [], None)
        evaluate.run_all([made], [checkpoint], EvaluationOptions(), StopAfter(10**9), time.perf_counter())
        report = json.loads((Path(settings().run.output) / name / "report.json").read_text())
        jsonschema.validate(report, SCHEMA)
        assert report["run_id"] == name
        if name == "test-r":
            assert report["test"] == report_of(settings())["test"]
        else:
            assert report["checkpoint"]["step"] == 6


def test_test_names_a_wrong_checkpoint(settings: Make, tmp_path: Path) -> None:
    run(settings())
    uri = f"{settings().run.output}/r"
    flags = {"run.output": settings().run.output, "data.cache_dir": str(tmp_path / "cache"), "tracker.mode": "off"}
    with pytest.raises(BadDataError, match="holds no run"):
        evaluate.settings_of(f"{uri}x", flags, [], None)
    made = evaluate.settings_of(uri, flags, [], None)
    with pytest.raises(BadDataError, match=r"no intact checkpoint of step 7: its steps are 6, 12"):
        evaluate.run_all(
            [made], [f"{uri}/checkpoints/7.ckpt"], EvaluationOptions(), StopAfter(10**9), time.perf_counter()
        )
    made = evaluate.settings_of(uri, flags | {"run.run_id": "r"}, [], None)
    with pytest.raises(ConflictError, match="is a training run"):
        evaluate.run_all([made], [uri], EvaluationOptions(), StopAfter(10**9), time.perf_counter())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--backbone", "resnet5"], "did you mean resnet50?"),
        (["--backbone", "mnasnet9"], "--backbone is 'mnasnet9'"),
        (["--weights", "NOPE"], "--weights is 'NOPE'"),
        (["--weights", "r2://bucket/w.pth"], "r2:// is not supported"),
        (["--data", "ftp://host/x.zip"], "--data is 'ftp://host/x.zip'"),
        (["--init-from", "r2://bucket/run"], "r2:// is not supported"),
    ],
)
def test_wrong_names_are_refused_before_a_run_is_begun(
    options: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with in_process(monkeypatch, capsys) as job:
        ended = job("partb", "--output", str(tmp_path / "runs"), "--cache-dir", str(tmp_path / "cache"), *options)
    assert ended.code == 2
    assert sentence in ended.last
    assert [*tmp_path.iterdir()] == []
