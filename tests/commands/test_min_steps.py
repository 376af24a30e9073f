"""Runs on few images, whose epochs `--min-steps` decides."""

import json
from pathlib import Path

import pytest

from inat_job.errors import Preempted
from tests.harness.job_runs import Make, model_of, report_of, run

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's remarks on a trainer without workers and loggers


def test_few_images_are_passed_over_more_often(settings: Make, tmp_path: Path) -> None:
    """An epoch has 6 steps, so 20 take 4 epochs: the same as if they were asked for, also after a stop."""
    asked = settings(run__output=str(tmp_path / "asked"), train__epochs="4")
    run(asked)
    least = settings(train__min_steps="20")
    with pytest.raises(Preempted):
        run(least, stop_after=20)
    config = json.loads((Path(least.run.output) / "r/config.json").read_text())
    assert (config["epochs"], config["settings"]["train"]["epochs"]) == (4, 2)
    run(least)
    assert len(report_of(least)["history"]) == 2
    assert report_of(least)["history"][-1]["ended_step"] == 24
    assert model_of(least) == model_of(asked)
    trained = report_of(least)["settings"]["train"]
    assert (trained["epochs"], trained["min_steps"]) == (4, 0)


def test_enough_steps_stay_as_they_are(settings: Make) -> None:
    made = settings(train__epochs="2", train__min_steps="12")
    run(made)
    trained = report_of(made)["settings"]["train"]
    assert (trained["epochs"], trained["min_steps"]) == (2, 12)
