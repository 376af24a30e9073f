"""The card and its libraries: architecture, preflight, precision, and the networks under --deterministic."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from inat_job.errors import ConflictError
from inat_job.host import nvidia
from inat_job.training import execution
from tests.gpu.figures import Figures, environment
from tests.gpu.watched_runs import GPU, StepLosses, on_both, report_of, run
from tests.harness.children import children, wait_for_end
from tests.harness.job_runs import SMALLER_B, Make

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.mark.gpu
def test_torch_has_kernels_for_this_card() -> None:
    major, minor = torch.cuda.get_device_capability()
    versions = [int(name.partition("_")[2].rstrip("af")) for name in torch.cuda.get_arch_list() if "sm_" in name]
    assert any(version // 10 == major and version % 10 <= minor for version in versions)
    assert nvidia.gpu_count() == torch.cuda.device_count()


@pytest.mark.gpu
def test_precision_is_what_the_card_does_well(figures: Figures) -> None:
    faults = {name: execution.convolution_fault("cuda", dtype) for name, dtype in DTYPES.items()}
    figures.record("precision", chosen=execution.choose_precision("cuda"), faults=faults)
    assert faults["fp16"] is None
    assert execution.choose_precision("cuda") == ("bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16")


def test_environment_is_complete() -> None:
    found = environment()
    assert torch.__version__.startswith(found["packages"]["torch"])
    assert (found["gpu"] is None) == (found["capability"] is None) == (not torch.cuda.is_available())


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.soak), GPU])
def test_preflight_passes(device: str, tmp_path: Path, figures: Figures) -> None:
    with children(tmp_path) as started:
        words = "preflight --part a --data demo: --wandb off".split()
        code, last = wait_for_end(started.start([*words, "--accelerator", device]))
    figures.record("preflight", code=code, last=last)
    assert code == 0, last


@pytest.mark.parametrize(
    ("device", "name"),
    [
        pytest.param(device, name, marks=pytest.mark.gpu if device == "cuda" else pytest.mark.soak)
        for device in ("cpu", "cuda")
        for name in ("five_block", "resnet50", "densenet121")
    ],
)
def test_networks_train_deterministically(device: str, name: str, settings: Make, tmp_path: Path) -> None:
    part = {"part": "a"} if name == "five_block" else {"part": "b", "model__backbone": name, "model__strategy": "full"}
    losses = []
    for output in ("one", "two"):
        each = StepLosses()
        changes = {"train__batch_size": "96", "train__epochs": "1", "train__deterministic": "true"} | part
        run(settings(run__output=str(tmp_path / output), train__accelerator=device, **changes), each)
        losses.append(each.values)
        shutil.rmtree(tmp_path / output)
    assert len(losses[0]) == 2
    assert torch.equal(*losses)
    assert math.isfinite(losses[0].sum())


@pytest.mark.gpu
def test_network_without_a_deterministic_form_is_a_conflict(settings: Make) -> None:
    made = settings("b", model__backbone="vgg16", model__strategy="full", train__deterministic="true")
    with pytest.raises(ConflictError, match="deterministic"):
        run(made)


@on_both
def test_report_names_the_device(device: str, settings: Make) -> None:
    made = settings("b", train__epochs="1", model__strategy="head", train__accelerator=device, **SMALLER_B)
    run(made)
    execution_of_run = report_of(made)["environment"]["execution"]
    assert execution_of_run["accelerator"] == device
