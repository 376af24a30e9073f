"""A run whose frozen stem computes each view once: the same results, resumed or not."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from inat_job.data import augment
from inat_job.data.module import ImageDataModule
from inat_job.errors import Preempted
from inat_job.settings import Settings
from tests.harness.job_runs import SCHEMA, SMALLER_B, Make, model_of, report_of, run

pytestmark = pytest.mark.filterwarnings("ignore")

HEAD = {**SMALLER_B, "model__strategy": "head", "train__epochs": "4", "model__feature_views": "2"}


def features_of(settings: Settings) -> list[Path]:
    return sorted(Path(settings.data.cache_dir, "features").rglob("*.bin"))


@pytest.mark.soak
def test_features_are_reported_and_reused_by_another_run(settings: Make) -> None:
    first = settings("b", **HEAD)
    run(first)
    report = report_of(first)
    jsonschema.validate(report, SCHEMA)
    counts = report["data"]
    assert report["reuse"]["computed"] == 2 * counts["n_train"] + counts["n_val"]
    assert (report["reuse"]["views"], report["reuse"]["epochs"]) == (2, 4)
    assert len(features_of(first)) == 3
    again = settings("b", **HEAD, run__run_id="again", train__lr="0.001")
    run(again)
    assert report_of(again)["reuse"]["computed"] == 0


@pytest.mark.soak
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"data__image_size": "64", "train__start_size": "64"}, None),
        ({"data__image_size": "64", "train__start_size": "32"}, "change with --start-size."),
        ({"train__mixup": "0.2", "train__cutmix": "1"}, "change with --mixup and --cutmix."),
    ],
)
def test_features_are_of_views_that_do_not_change(
    settings: Make, changes: dict[str, str], why: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    made = settings("b", **HEAD | changes)
    run(made)
    assert (report_of(made)["reuse"] is None) == bool(why)
    assert (why or "") in capsys.readouterr().out


@pytest.mark.soak
@pytest.mark.parametrize(("strategy", "told"), [("head", True), ("full", False)])
def test_muon_without_a_convolution_is_told(
    settings: Make, strategy: str, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings("b", **SMALLER_B, model__strategy=strategy, train__optimiser="muon", train__epochs="1"))
    assert ("--optimiser muon is AdamW here" in capsys.readouterr().out) is told


@pytest.mark.soak
def test_features_train_as_the_same_views_do(
    settings: Make,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by_features = settings("b", **HEAD, train__precision="fp32")
    run(by_features)
    monkeypatch.setattr("inat_job.training.feature_cache.decide", lambda *args: None)
    view_batches = ImageDataModule.view_batches
    monkeypatch.setattr(
        ImageDataModule, "view_batches", lambda self, view, rows, size: view_batches(self, view % 2, rows, size)
    )
    plain = settings("b", **HEAD, train__precision="fp32", run__run_id="plain")
    run(plain)
    assert report_of(plain)["reuse"] is None
    losses = [rows_of(each) for each in (by_features, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def rows_of(settings: Settings) -> list[float]:
    lines = Path(settings.run.output, settings.run_id, "metrics.jsonl").read_text().splitlines()
    return [row["val_loss"] for row in map(json.loads, lines) if "val_loss" in row]


@pytest.mark.soak
@pytest.mark.parametrize("strategy", ["head", "last-k", "gradual"])
def test_resume_on_features_is_exact(settings: Make, strategy: str) -> None:
    changes: dict[str, Any] = HEAD | {"model__strategy": strategy}
    if strategy == "gradual":
        changes |= {"train__epochs": "20", "train__batch_size": "24", "model__feature_views": "1"}
    whole = settings("b", **changes, run__run_id="whole")
    run(whole)
    assert report_of(whole)["reuse"] is not None
    stopped = settings("b", **changes)
    for asked in (12, 25, 45, 60):
        try:
            run(stopped, asked)
        except Preempted:
            continue
        break
    run(stopped)
    assert model_of(stopped) == model_of(whole)
    assert report_of(stopped)["test"] == report_of(whole)["test"]


@pytest.mark.soak
def test_nothing_is_reused_without_views_or_frozen_part(settings: Make) -> None:
    run(settings("b", **HEAD | {"model__feature_views": "0"}))
    assert report_of(settings("b", **HEAD | {"model__feature_views": "0"}))["reuse"] is None
    run(settings(run__run_id="a"))
    assert report_of(settings(run__run_id="a"))["reuse"] is None
    assert not features_of(settings())


@pytest.mark.soak
def test_features_of_other_view_code_are_not_reused(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run(settings("b", **HEAD))
    monkeypatch.setattr(augment, "VIEW_FORMAT", augment.VIEW_FORMAT + 1)
    after = settings("b", **HEAD, run__run_id="after")
    run(after)
    assert report_of(after)["reuse"]["computed"] == report_of(settings("b", **HEAD))["reuse"]["computed"]


@pytest.mark.soak
@pytest.mark.parametrize("setting", ["train__crop_scale", "train__rotation", "train__colour"])
def test_features_of_another_augmentation_are_not_reused(settings: Make, setting: str) -> None:
    run(settings("b", **HEAD))
    after = settings("b", **HEAD, run__run_id="after", **{setting: "0.5"})
    run(after)
    assert report_of(after)["reuse"]["computed"] > 0
