"""Whole runs with networks of timm: exact resume, what the run leaves, `test` and `predict` of it."""

import json
import time
from pathlib import Path

import pytest
import torch

from inat_job import load_model
from inat_job.command_options import EvaluationOptions
from inat_job.commands import test
from inat_job.errors import Preempted
from inat_job.signals import StopFlag
from tests.harness.job_runs import Make, model_of, report_of, run
from tests.harness.made_images import tree

timm = pytest.importorskip("timm")

pytestmark = pytest.mark.filterwarnings("ignore")

RESNET, VIT = "timm/test_resnet.r160_in1k", "timm/test_vit.r160_in1k"


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """Made-up weights of ImageNet's classes."""
    torch.manual_seed(1)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "w.pth")
    return str(tmp_path / "w.pth")


@pytest.mark.parametrize(
    ("name", "strategy"),
    [
        (RESNET, "head"),
        pytest.param(RESNET, "gradual", marks=pytest.mark.soak),
        pytest.param(RESNET, "lp-ft", marks=pytest.mark.soak),
        (VIT, "last-k"),
        pytest.param(VIT, "full", marks=pytest.mark.soak),
    ],
)
def test_resume_is_bit_exact(name: str, strategy: str, weights: str, settings: Make) -> None:
    changes = {"model__backbone": name, "model__weights": weights if name == RESNET else "none"}
    changes |= {"model__strategy": strategy, "train__epochs": "3" if strategy == "gradual" else "2"}
    whole, stopped = settings("b", **changes, run__run_id="whole"), settings("b", **changes)
    run(whole)
    stops = 0
    for asked in (6, 10, 14, 20, 30):
        try:
            run(stopped, asked)
        except Preempted:
            stops += 1
    run(stopped)
    assert stops > 1
    assert model_of(stopped) == model_of(whole)
    assert report_of(stopped)["test"] == report_of(whole)["test"]


def test_run_is_tested_predicts_and_is_described_as_timms(weights: str, settings: Make, tmp_path: Path) -> None:
    made = settings("b", model__backbone=RESNET, model__weights=weights, train__epochs="1")
    run(made)
    folder, report = Path(made.run.output) / "r", report_of(made)
    assert (report["model"]["name"], report["settings"]["data"]["eval_crop"]) == (RESNET, 0.95)
    assert report["environment"]["versions"]["timm"] == timm.__version__
    assert json.loads((folder / "model" / "config.json").read_text())["architecture"] == "test_resnet"
    assert "a network of timm" in (folder / "model" / "README.md").read_text()
    flags = {"run.output": made.run.output, "data.cache_dir": made.data.cache_dir, "tracker.mode": "off"}
    again = test.settings_of(str(folder), flags, [], None)
    test.run_all([again], [str(folder)], EvaluationOptions("none"), StopFlag(), time.perf_counter())
    tested = json.loads((Path(made.run.output) / "test-r" / "report.json").read_text())
    assert tested["test"]["loss"] == report["test"]["loss"]
    image = next(data for name, data in tree(train=1, test=1).items() if "/val/" in name)
    assert load_model(folder).predict(image).label in report["data"]["classes"]
