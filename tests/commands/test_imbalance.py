"""Runs on classes of unequal size: what the report says of them."""

import json
from functools import partial
from pathlib import Path

import jsonschema
import pytest

from inat_job.errors import UsageError
from inat_job.settings import TrainSettings
from tests.harness.job_runs import SCHEMA, SMALLER_B, Make, report_of, run, settings_in
from tests.harness.made_images import tree, write_zip

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's remarks on a trainer without workers and loggers


@pytest.fixture
def unequal(tmp_path: Path) -> Make:
    """Settings with a data set of which 20, 20 and 5 images of a class are in train."""
    files = tree(train=20, test=5)
    few = {name: data for name, data in files.items() if "train/Cats/" not in name or name[-6:] < "05.jpg"}
    return partial(settings_in, tmp_path, write_zip(tmp_path / "x.zip", few))


def test_class_weights_are_reported(unequal: Make) -> None:
    made = unequal(train__class_weights="balanced")
    run(made)
    report = report_of(made)
    jsonschema.validate(report, SCHEMA)
    data = report["data"]
    assert dict(zip(data["classes"], data["n_train_per_class"], strict=True)) == {"Ants": 16, "Bees": 16, "Cats": 4}
    assert data["class_weights"] == [0.75, 0.75, 3.0]
    assert "balanced_accuracy" in report["test"]
    page = (Path(made.run.output) / "r" / "report.html").read_text()
    assert "4 to 16 for training; in the loss a class weighs 0.75 to 3.00" in page


@pytest.mark.soak
def test_balanced_sampling_of_cached_features(unequal: Make) -> None:
    made = unequal("b", train__sampling="balanced", model__strategy="head", train__epochs="4", **SMALLER_B)
    run(made)
    report = report_of(made)
    assert (report["data"]["class_weights"], report["reuse"]["views"]) == (None, 2)
    assert "each class is drawn equally often" in (Path(made.run.output) / "r" / "report.html").read_text()


def test_unset_options_are_no_part_of_a_run_id(unequal: Make) -> None:
    plain = unequal(run__run_id="none")
    spelled = unequal(run__run_id="none", train__class_weights="none", train__sampling="shuffled", train__final="false")
    assert spelled.fingerprint() == plain.fingerprint()
    others = [{"train__class_weights": "balanced"}, {"train__sampling": "balanced"}, {"train__final": "true"}]
    assert len({unequal(run__run_id="none", **each).fingerprint() for each in [{}, *others]}) == 4


def test_run_of_a_version_without_the_options_resumes(unequal: Make) -> None:
    made = unequal()
    run(made)
    path = Path(made.run.output) / "r" / "config.json"
    stored = json.loads(path.read_text())
    for name in ("class_weights", "sampling", "final"):
        del stored["settings"]["train"][name]
    path.write_text(json.dumps(stored))
    (path.parent / "report.json").unlink()
    run(made)
    assert [each["started_step"] for each in report_of(made)["history"]] == [0, 8]


def test_both_are_refused() -> None:
    with pytest.raises(UsageError, match="--class-weights and --sampling are both balanced"):
        TrainSettings(class_weights="balanced", sampling="balanced")
