"""Runs on few images, whose epochs `--min-images-seen` decides."""

import json
import shlex
from pathlib import Path

import pytest

from inat_job.errors import Preempted
from inat_job.reporting.reproduction import command_line
from tests.harness.job_runs import Make, model_of, report_of, run

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's remarks on a trainer without workers and loggers


@pytest.mark.soak
@pytest.mark.parametrize("batch", ["8", "16"])
def test_few_images_are_passed_over_more_often(batch: str, settings: Make, tmp_path: Path) -> None:
    """An epoch trains on 48 images, so 160 take 4 epochs: the same as if they were asked for, also after a stop."""
    asked = settings(run__output=str(tmp_path / "asked"), train__epochs="4", train__batch_size=batch)
    run(asked)
    least = settings(train__min_images_seen="160", train__batch_size=batch)
    with pytest.raises(Preempted):
        run(least, stop_after=20)
    config = json.loads((Path(least.run.output) / "r/config.json").read_text())
    assert (config["epochs"], config["settings"]["train"]["epochs"]) == (4, 2)
    run(least)
    report = report_of(least)
    assert len(report["history"]) == 2
    assert report["history"][-1]["ended_step"] == report_of(asked)["history"][-1]["ended_step"]
    assert model_of(least) == model_of(asked)
    words = shlex.split(command_line(report, ["inat-job"]))
    assert words[words.index("--min-images-seen") + 1] == "160"
    assert words[words.index("--epochs") + 1] == "2"


def test_enough_images_take_no_more_epochs(settings: Make) -> None:
    made = settings(train__epochs="2", train__min_images_seen="96")
    run(made)
    assert json.loads((Path(made.run.output) / "r/config.json").read_text())["epochs"] == 2
