"""Whole jobs on the card, and resumes that are bit-exact under --deterministic."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from inat_job.errors import Preempted
from inat_job.settings import Settings
from tests.gpu.figures import Figures
from tests.gpu.watched_runs import (
    AtStep,
    QuietStop,
    StepLosses,
    differing,
    last_state,
    on_both_slowly,
    report_of,
    run,
    tensors_of,
    weight_distance,
)
from tests.harness.children import children, wait_for_end, wait_for_event
from tests.harness.job_runs import SMALLER_B, Make, model_of

A: dict[str, Any] = {"part": "a"}
B: dict[str, Any] = {"part": "b", **SMALLER_B}
STEPS_PER_EPOCH = 24
EPOCHS = 3


def stopped_and_resumed(settings: Settings, steps: tuple[int, ...]) -> None:
    """Run a job that is stopped after each of these steps and started again."""
    for step in steps:
        stop = QuietStop()
        with pytest.raises(Preempted):
            run(settings, AtStep(step, lambda stop=stop: stop.set("the test")), stop=stop)  # type: ignore[misc]
    run(settings)


@pytest.mark.parametrize(
    ("device", "precision", "changes"),
    [
        pytest.param("cpu", "bf16", A, id="cpu-a-bf16", marks=pytest.mark.soak),
        *(
            pytest.param("cuda", precision, changes, marks=pytest.mark.gpu, id=f"cuda-{name}-{precision}")
            for name, precision, changes in (
                ("a", "bf16", A),
                ("a", "fp16", A),
                ("full", "bf16", B | {"model__strategy": "full"}),
                ("full", "fp16", B | {"model__strategy": "full"}),
                ("gradual", "bf16", B | {"model__strategy": "gradual"}),
                ("head", "bf16", B | {"model__strategy": "head"}),
            )
        ),
    ],
)
def test_deterministic_resume_is_bit_exact(
    device: str, precision: str, changes: dict[str, Any], settings: Make, tmp_path: Path
) -> None:
    common = {
        "train__accelerator": device,
        "train__precision": precision,
        "train__deterministic": "true",
        "train__epochs": str(EPOCHS),
        **changes,
    }
    whole = settings(run__output=str(tmp_path / "whole"), **common)
    run(whole)
    stopped = settings(**common)
    stopped_and_resumed(stopped, (5, STEPS_PER_EPOCH + 13, 2 * STEPS_PER_EPOCH + 1))
    states = [last_state(each) for each in (stopped, whole)]
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "MixedPrecision")
    ours, theirs = ({name: state.get(name) for name in parts} for state in states)
    assert differing(tensors_of(ours), tensors_of(theirs)) == []
    assert ours["lr_schedulers"] == theirs["lr_schedulers"]
    assert ours["MixedPrecision"] == theirs["MixedPrecision"]
    assert ((ours["MixedPrecision"] or {}).get("scale", 0) > 0) == (precision == "fp16")
    assert model_of(stopped) == model_of(whole)
    assert len(report_of(stopped)["history"]) == 4


@pytest.mark.gpu
def test_resume_without_deterministic_is_close_and_says_so(
    settings: Make, tmp_path: Path, figures: Figures, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"train__accelerator": "cuda", "train__epochs": str(EPOCHS)}
    whole, stopped = settings(run__output=str(tmp_path / "whole"), **common), settings(**common)
    run(whole)
    assert "--deterministic" not in capsys.readouterr().out
    stopped_and_resumed(stopped, (5,))
    assert "--deterministic" in capsys.readouterr().out
    ours, theirs = (tensors_of(last_state(each)["state_dict"]) for each in (stopped, whole))
    distance = weight_distance(ours, theirs)
    figures.record("resume without --deterministic", relative_distance=distance, bit_equal=distance == 0)
    assert distance < 0.05


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [A, B | {"model__strategy": "full"}], ids=["a", "full"])
def test_resident_and_copied_images_train_alike(changes: dict[str, Any], settings: Make, tmp_path: Path) -> None:
    losses = []
    for share in ("0.5", "0"):
        each = StepLosses()
        more = {"train__resident_share": share, "train__deterministic": "true", "train__accelerator": "cuda"}
        run(settings(run__output=str(tmp_path / share), **more, **changes), each)
        losses.append(each.values)
    assert torch.equal(*losses)


RECIPE = (
    "--data demo: --image-size 64 --filters 16 --epochs 20 --batch-size 16 --deterministic --wandb off "
    "--lease-seconds 4"
)


@pytest.mark.parametrize(
    ("device", "part", "number"),
    [
        pytest.param("cpu", "parta", signal.SIGKILL, marks=pytest.mark.soak),
        pytest.param("cuda", "parta", signal.SIGTERM, marks=pytest.mark.gpu),
        pytest.param("cuda", "parta", signal.SIGKILL, marks=pytest.mark.gpu),
    ],
)
def test_killed_job_resumes_bit_exactly(
    device: str, part: str, number: signal.Signals, tmp_path: Path, figures: Figures
) -> None:
    """Started from the command line, and killed in the middle of an epoch."""
    words = [part, *RECIPE.split(), "--accelerator", device, "--devices", "1", "--checkpoint-minutes", "0.001"]
    with children(tmp_path) as started:
        whole = started.start([*words, "--run-id", "whole"])
        killed = started.start([*words, "--run-id", "killed"])
        wait_for_event(killed, "epoch")
        wait_for_event(killed, "checkpoint")
        os.kill(killed.pid, number)
        code, last = wait_for_end(killed)
        assert code == (143 if number == signal.SIGTERM else -number), last
        again = started.start([*words, "--run-id", "killed"])
        for child in (whole, again):
            code, last = wait_for_end(child)
            assert code == 0, last
    models = [(tmp_path / "runs" / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert models[0] == models[1]


@on_both_slowly
@pytest.mark.parametrize("part", ["parta", "partb"])
def test_whole_job_from_the_command_line(device: str, part: str, tmp_path: Path, figures: Figures) -> None:
    network = [] if part == "parta" else "--weights none --strategy full".split()
    words = [part, *"--data demo: --image-size 64 --epochs 2 --wandb off --run-id r".split(), *network]
    with children(tmp_path) as started:
        child = started.start([*words, "--accelerator", device, "--devices", "1"])
        output, errors = child.communicate(timeout=300)
    assert child.returncode == 0, errors
    report = (tmp_path / "runs" / "r" / "report.json").read_text()
    figures.record(f"whole job, {part}, {device}", timing=json.loads(report)["timing"])
    assert f'"accelerator": "{device}"' in report
    if device == "cuda":
        assert '"resident": true' in output
