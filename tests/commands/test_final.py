"""`--final`: a run that trains on the validation images too, and all that reads its results."""

import json
import time
from pathlib import Path

import jsonschema
import pytest

from inat_job.command_options import CompareOptions, EvaluationOptions
from inat_job.commands import compare
from inat_job.commands import test as evaluate
from inat_job.errors import ConflictError, UsageError
from inat_job.evaluation.prediction_table import PredictionTable
from inat_job.inference.image_model import load_model
from inat_job.settings import TrainSettings
from inat_job.signals import StopFlag
from inat_job.training.checkpoint_callback import CheckpointCallback
from tests.harness.job_runs import SCHEMA, SMALLER_B, Make, model_of, report_of, run

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's remarks on a trainer without workers and loggers


def test_final_run_has_no_validation(settings: Make, capsys: pytest.CaptureFixture[str]) -> None:
    made = settings(train__final="true", run__pictures="true")
    run(made)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    report, folder = report_of(made), Path(made.run.output) / "r"
    jsonschema.validate(report, SCHEMA)
    data = report["data"]
    assert [data[name] for name in ("n_train", "n_val", "n_test", "val_share")] == [60, 0, 15, None]
    assert (report["val"], report["temperature"]) == (None, 1)
    assert (report["checkpoint"]["step"], report["checkpoint"]["epoch"]) == (14, 2)  # the last: 60 // 8 steps an epoch
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train_loss" in row] == [7, 10, 14]
    assert not any("val_loss" in row for row in rows)
    phases = [line["phase"] for line in lines if line["event"] == "phase"]
    assert "test" in phases
    assert not {"validate", "final-validation"} & set(phases)
    assert [line["epoch"] for line in lines if line["event"] == "epoch"] == [1, 2]
    assert len([line for line in lines if line["event"] == "final"]) == 1
    assert set(PredictionTable.read_csv(folder / "predictions.csv").splits) == {"test"}
    page = (folder / "report.html").read_text()
    assert "The temperature is 1, not fitted" in page
    assert "none for validation" in page
    assert "none for validation" in (folder / "model" / "README.md").read_text()
    assert "Line plots over" in (folder / "plots" / "pictures.json").read_text()
    assert load_model(str(folder)).predict(next(iter(_images(made)))).label in data["classes"]


def _images(made) -> list[str]:  # type: ignore[no-untyped-def]
    import zipfile

    with zipfile.ZipFile(made.data.uri) as archive:
        name = next(each for each in archive.namelist() if each.endswith(".jpg"))
        path = Path(made.run.output).parent / "one.jpg"
        path.write_bytes(archive.read(name))
    return [str(path)]


@pytest.mark.soak
def test_final_run_of_cached_features(settings: Make) -> None:
    made = settings("b", model__strategy="head", train__epochs="4", train__final="true", **SMALLER_B)
    run(made)
    report = report_of(made)
    assert (report["val"], report["reuse"]["computed"]) == (None, 2 * 60)


def test_kill_at_the_end_of_the_last_epoch_loses_nothing(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = settings(train__final="true", run__run_id="whole")
    run(whole)
    taken = CheckpointCallback._take

    def killed(self: CheckpointCallback, trainer: object, ends_epoch: bool = False) -> None:
        taken(self, trainer, ends_epoch)  # type: ignore[arg-type]
        if self.ended:
            raise RuntimeError("killed")

    made = settings(train__final="true")
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointCallback, "_take", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(made)
    assert not (Path(made.run.output) / "r" / "report.json").exists()
    run(made)
    assert model_of(made) == model_of(whole)
    assert report_of(made)["test"] == report_of(whole)["test"]
    assert report_of(made)["history"] == [
        {"started_step": 0, "ended_step": 14, "why": "failed with code 1"},
        {"started_step": 14, "ended_step": 14, "why": "finished"},
    ]


@pytest.mark.soak
def test_test_and_compare_of_a_final_run(settings: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    final, ordinary = settings(train__final="true", run__run_id="final"), settings(run__run_id="ordinary")
    run(final)
    run(ordinary)
    for checkpoint in ("final", "final/model"):
        uri = f"{final.run.output}/{checkpoint}"
        made = evaluate.settings_of(uri, {"run.output": final.run.output, "run.run_id": f"t-{len(uri)}"}, [], None)
        evaluate.run_all([made], [uri], EvaluationOptions(), StopFlag(), time.perf_counter())
        again = report_of(made.settings)
        assert (again["test"], again["val"], again["temperature"]) == (report_of(final)["test"], None, 1)
    assert report_of(final)["data"]["split_digest"] != report_of(ordinary)["data"]["split_digest"]
    capsys.readouterr()
    compare.run(
        final,
        [f"{final.run.output}/{name}" for name in ("final", "ordinary")],
        CompareOptions(html=str(tmp_path / "compare.html")),
        StopFlag(),
    )
    assert "final" in capsys.readouterr().out


@pytest.mark.parametrize("from_final", [True, False])
def test_init_from_warns_of_validation_images_alone(
    from_final: bool, settings: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run(settings(run__run_id="first", train__final=str(from_final)))
    capsys.readouterr()
    run(settings(run__init_from="first", train__final=str(not from_final)))
    shown = capsys.readouterr().out
    assert ("was trained on images that this run validates with" in shown) == from_final
    assert ("train with --final too, or start from a run without it" in shown) == from_final


def test_final_run_is_another_run(settings: Make) -> None:
    run(settings())
    with pytest.raises(ConflictError, match="train.final is False in the run, True here"):
        run(settings(train__final="true"))


def test_early_stop_is_refused() -> None:
    with pytest.raises(UsageError, match="--early-stop is 2, and --final leaves no image for validation: leave one"):
        TrainSettings(final=True, early_stop=2)


def test_full_batch_counts_the_validation_images(settings: Make) -> None:
    """There are 48 training images, and 60 with those for validation."""
    run(settings(train__batch_size="50", train__final="true"))
    with pytest.raises(ConflictError, match="only 48 training images"):
        run(settings(train__batch_size="50", run__run_id="other"))
