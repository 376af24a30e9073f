"""A run that begins with a probe: its checkpoint of step 0, exact resume, and the runs that have none."""

import itertools
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load

from inat_job.errors import BadDataError, ConflictError, Preempted
from inat_job.models.backbones import build_backbone
from inat_job.models.frozen_stem import CannotCutError
from inat_job.models.strategies import AFTER_PROBE
from inat_job.settings import Settings
from inat_job.storage import open_store
from tests.harness.job_runs import SCHEMA, SMALLER_B, Make, model_of, report_of, run
from tests.harness.made_images import CLASSES, encoded, write_zip

pytestmark = pytest.mark.filterwarnings("ignore")

PROBED = {**SMALLER_B, "train__epochs": "2", "model__feature_views": "1"}


def rows_of(settings: Settings) -> list[dict[str, Any]]:
    lines = Path(settings.run.output, settings.run_id, "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.soak
@pytest.mark.parametrize("strategy", AFTER_PROBE)
def test_probe_is_a_validated_checkpoint_of_step_0(settings: Make, strategy: str) -> None:
    made = settings("b", **PROBED | {"train__epochs": "1"}, model__strategy=strategy)
    run(made)
    report = report_of(made)
    jsonschema.validate(report, SCHEMA)
    first = next(row for row in rows_of(made) if "val_loss" in row)
    assert (first["step"], first["epoch"]) == (0, -1)
    assert report["probe"] == {name: first[name] for name in ("val_accuracy", "val_loss")}
    store = open_store(f"{made.run.output}/{made.run_id}")
    manifest = json.loads(store.read("checkpoints/0.json"))
    assert (manifest["epoch"], manifest["validate"], manifest["accuracies"]) == (0, False, [])
    assert {name: manifest[name] for name in report["probe"]} == report["probe"]


@pytest.mark.soak
def test_training_that_does_harm_leaves_the_probe_as_the_result(settings: Make) -> None:
    made = settings("b", **PROBED, model__strategy="lp-ft", train__lr="10", train__warmup="0")
    run(made)
    report = report_of(made)
    assert report["val"]["accuracy"] == pytest.approx(report["probe"]["val_accuracy"])
    assert (report["checkpoint"]["step"], report["checkpoint"]["epoch"]) == (0, 0)


@pytest.mark.soak
@pytest.mark.parametrize("more", [{"train__ema": "0.9"}, {"train__final": "true"}])
def test_resume_after_a_probe_is_exact(settings: Make, more: dict[str, str]) -> None:
    changes = PROBED | {"model__strategy": "lp-ft"} | more
    whole = settings("b", **changes, run__run_id="whole")
    run(whole)
    stopped = settings("b", **changes)
    stops = 0
    for asked in (8, 12, 18, 24, 30, 40):
        try:
            run(stopped, asked)
        except Preempted:
            stops += 1
            continue
        break
    run(stopped)
    assert stops > 1
    assert model_of(stopped) == model_of(whole)
    assert report_of(stopped)["test"] == report_of(whole)["test"]
    assert report_of(stopped).get("probe") == report_of(whole).get("probe")


@pytest.mark.soak
def test_resume_with_frozen_batch_norms_is_exact(settings: Make, tmp_path: Path) -> None:
    """Those that the weights brought stay as they are, and the others train, before and after the resume."""
    torch.manual_seed(1)
    drawn = "features.12.1."
    given = build_backbone("mobilenet_v3_small", 1000, 32).network.get_submodule("backbone").state_dict()
    torch.save({name: each for name, each in given.items() if not name.startswith(drawn)}, tmp_path / "w.pth")
    changes = PROBED | {"model__strategy": "full", "model__freeze_batch_norm": "true", "model__feature_views": "2"}
    changes |= {"model__weights": str(tmp_path / "w.pth"), "model__allow_partial_weights": "true"}
    whole, stopped = settings("b", **changes, run__run_id="whole"), settings("b", **changes)
    run(whole)
    with pytest.raises(Preempted):
        run(stopped, 10)
    run(stopped)
    assert model_of(stopped) == model_of(whole)
    trained = load(model_of(whole))
    norms = [name for name in trained if name.endswith("running_mean")]
    moved = {name for name in norms if not torch.equal(trained[name], given[name])}
    assert len(norms) > 9
    assert moved == {f"{drawn}running_mean"}


@pytest.mark.soak
def test_head_of_another_run_is_kept(settings: Make) -> None:
    first = settings("b", **PROBED, model__strategy="head", run__run_id="first")
    run(first)
    then = settings("b", **PROBED, model__strategy="lp-ft", run__init_from="first")
    run(then)
    assert "probe" not in report_of(then)


@pytest.mark.soak
def test_one_training_image_of_each_class_is_too_few(settings: Make, tmp_path: Path) -> None:
    files = {
        f"{split}/{label}/0.jpg": encoded(number, (32, 32))
        for number, (split, label) in enumerate(itertools.product(("train", "test"), CLASSES))
    }
    changes = {"data__uri": str(write_zip(tmp_path / "few.zip", files)), "train__batch_size": "2"}
    with pytest.raises(BadDataError, match="no class has two different training images: add some, or use --strategy f"):
        run(settings("b", **PROBED | changes, model__strategy="lp-ft", train__final="true"))


def test_network_that_cannot_be_cut_is_refused(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise CannotCutError("it has dropout outside a layer")

    monkeypatch.setattr("inat_job.models.classifier.cut_stem", refuse)
    with pytest.raises(ConflictError, match="begins with features of .*: use --strategy full"):
        run(settings("b", **PROBED, model__strategy="lp-ft"))


@pytest.mark.soak
def test_final_run_solves_for_the_head_on_all_images(settings: Make, capsys: pytest.CaptureFixture[str]) -> None:
    """With the penalty of the run that it finishes, which was chosen on the validation images."""
    ordinary, final = (
        settings("b", **PROBED, model__strategy="lp-ft", train__final=final, run__run_id=f"final-{final}")
        for final in ("false", "true")
    )
    probes = []
    for each in (ordinary, final):
        run(each)
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
        probes += [event for event in events if event["event"] == "probe"]
    data = report_of(ordinary)["data"]
    assert probes[0]["rows"] == 2 * data["n_train"]
    assert probes[1]["rows"] == 2 * (data["n_train"] + data["n_val"])
    assert probes[0]["penalty"] == probes[1]["penalty"]
