"""How the arithmetic is decided: a precision is tried before it is used, and a resume keeps what was decided."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import nn

from inat_job.configuration import configure
from inat_job.distributed.ranks import SINGLE_RANK
from inat_job.errors import ConflictError
from inat_job.host import nvidia
from inat_job.host.nvidia import Driver
from inat_job.run.job import Job
from inat_job.settings import TrainSettings
from inat_job.signals import never
from inat_job.training import execution
from inat_job.training.context import RunContext


def test_correct_device_gets_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert execution.convolution_fault("cpu", torch.bfloat16) is None
    assert execution.convolution_fault("cpu", torch.float16) is None
    assert execution.choose_precision("cpu") == "bf16"


@pytest.mark.parametrize("factor", [1.1, math.nan, math.inf])
def test_device_with_wrong_results_gets_fp32(
    factor: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = torch.nn.functional.conv2d

    def wrong(images: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return right(images, *args, **kwargs) * (factor if images.dtype is torch.bfloat16 else 1)

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(execution.F, "conv2d", wrong)
    assert execution.choose_precision("cpu") == "fp32"
    assert "cpu claims to support bf16, but a convolution is wrong by" in capsys.readouterr().out


def test_device_without_support_has_a_fault() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    fault = execution.convolution_fault("cuda", torch.bfloat16)
    assert fault is not None
    assert fault.startswith("fails (")


def test_fp16_is_tried_where_bf16_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_hardware_precisions", lambda accelerator: ("bf16", "fp16"))
    monkeypatch.setattr(
        execution, "convolution_fault", lambda accelerator, dtype: "fails" if dtype is torch.bfloat16 else None
    )
    assert execution.choose_precision("cuda") == "fp16"


def test_stored_precision_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "choose_precision", lambda accelerator: "bf16")
    stored = execution.decide(TrainSettings(accelerator="cpu"), None)
    monkeypatch.setattr(execution, "choose_precision", lambda accelerator: pytest.fail("it was tried"))
    assert execution.decide(TrainSettings(accelerator="cpu"), stored.as_dict()).precision == "bf16"


def test_full_gpu_is_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(accelerator: str) -> str:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(execution, "choose_precision", full)
    settings = configure("a", {}, [], None).settings
    with pytest.raises(ConflictError, match="lower --batch-size"):
        RunContext.create(Job(settings, None, SINGLE_RANK, None, never), None)  # type: ignore[arg-type]


def test_choosing_a_precision_draws_no_random_numbers() -> None:
    before = torch.get_rng_state()
    execution.choose_precision("cpu")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("asked", "missing", "compiled"), [(False, [], False), (True, [], True), (True, ["a", "b"], False)]
)
def test_network_is_compiled_only_if_asked_and_possible(
    asked: bool,
    missing: list[str],
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("inat_job.host.environment.missing_for_compilation", lambda on_gpu: missing)
    decided = execution.decide(TrainSettings(accelerator="cpu", precision="fp32", compile=asked), None)
    assert decided.compile is compiled
    assert ("--compile also needs a and b." in capsys.readouterr().out) == bool(missing)


def test_resume_without_a_compiler_warns_that_it_is_not_bit_equal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = TrainSettings(accelerator="cpu", precision="fp32", compile=True)
    monkeypatch.setattr("inat_job.host.environment.missing_for_compilation", lambda on_gpu: [])
    stored = execution.decide(settings, None).as_dict()
    monkeypatch.setattr("inat_job.host.environment.missing_for_compilation", lambda on_gpu: ["a compiler"])
    assert not execution.decide(settings, stored).compile
    assert "not bit-equal" in capsys.readouterr().out


def test_execution_stored_by_an_older_version_is_kept() -> None:
    names = ("accelerator", "device", "precision", "channels_last", "deterministic", "threads", "torch")
    first = execution.decide(TrainSettings(accelerator="cpu"), None)
    stored = {name: getattr(first, name) for name in names} | {"compile": False, "compile_mode": "default"}
    assert execution.decide(TrainSettings(accelerator="cpu"), stored) == first


def test_resume_keeps_the_mode_of_compilation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("inat_job.host.environment.missing_for_compilation", lambda on_gpu: [])
    settings = TrainSettings(accelerator="cpu", precision="fp32", compile=True)
    stored = execution.decide(settings, None).as_dict() | {"compile_mode": "reduce-overhead"}
    assert execution.decide(settings, stored).compile_mode == "reduce-overhead"
    assert "not bit-equal" not in capsys.readouterr().out


def test_compiler_failure_leaves_the_network_as_it_is(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("the compiler is broken")

    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", fail)
    network = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    names, images = set(network.state_dict()), torch.ones(4, 3)
    expected = network(images)
    execution.compile_in_place(network)
    assert torch.equal(network(images), expected)
    network(images).sum().backward()
    assert set(network.state_dict()) == names


def test_resume_keeps_the_first_attempts_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    first = execution.decide(TrainSettings(precision="fp32", accelerator="cpu"), None)
    stored: dict[str, Any] = dataclasses.asdict(first) | {"threads": 7}
    kept = execution.decide(TrainSettings(precision="auto", accelerator="cpu"), stored)
    assert (kept.precision, kept.threads) == ("fp32", 7)
    assert "not bit-equal" not in capsys.readouterr().out
    execution.decide(TrainSettings(accelerator="cpu"), stored | {"torch": "1.0"})
    assert "not bit-equal" in capsys.readouterr().out


def test_missing_accelerator_is_a_conflict() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConflictError, match="--accelerator is cuda"):
        execution.decide(TrainSettings(accelerator="cuda"), None)


@pytest.mark.parametrize("accelerator", ["auto", "cuda"])
def test_unusable_gpu_is_refused_and_not_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch, accelerator: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(nvidia, "find_driver", lambda: Driver("470.82.1", "11.4", has_gpu=True))
    with pytest.raises(ConflictError, match=rf"470\.82\.1.*CUDA {torch.version.cuda}.*driver \d+ or newer"):
        execution.decide(TrainSettings(accelerator=accelerator), None)
    assert execution.decide(TrainSettings(accelerator="cpu"), None).accelerator == "cpu"


def test_fp32_matmul_and_convolution_precision_is_explicit() -> None:
    for deterministic in (True, False):
        decided = execution.decide(TrainSettings(accelerator="cpu", deterministic=deterministic), None)
        decided.apply()
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "tf32"
        assert decided.cudnn_benchmark is not deterministic
        assert torch.get_num_threads() == decided.threads
