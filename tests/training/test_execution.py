"""The arithmetic a device claims is tried before it is used."""

import dataclasses
import math
from typing import Any

import pytest
import torch

from inat_job.configuration import configure
from inat_job.errors import ConflictError
from inat_job.host import nvidia
from inat_job.host.nvidia import Driver
from inat_job.settings import TrainSettings
from inat_job.signals import never
from inat_job.training import context, execution
from inat_job.training.execution import decide


def test_a_device_that_does_well_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert execution.fault_of("cpu", torch.bfloat16) is None
    assert execution.fault_of("cpu", torch.float16) is None
    assert execution.choose("cpu") == "bf16"


@pytest.mark.parametrize("factor", [1.1, math.nan, math.inf])
def test_a_device_that_computes_nonsense_gets_fp32(
    factor: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = torch.nn.functional.conv2d

    def wrong(images: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return right(images, *args, **kwargs) * (factor if images.dtype is torch.bfloat16 else 1)

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(execution.F, "conv2d", wrong)
    assert execution.choose("cpu") == "fp32"
    assert "cpu says that it has bf16, but a convolution is wrong by" in capsys.readouterr().out


def test_a_device_that_refuses_gets_fp32() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    fault = execution.fault_of("cuda", torch.bfloat16)
    assert fault is not None
    assert fault.startswith("fails (")


def test_fp16_is_tried_where_bf16_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "_claimed", lambda accelerator: ("bf16", "fp16"))
    monkeypatch.setattr(execution, "fault_of", lambda accelerator, dtype: "fails" if dtype is torch.bfloat16 else None)
    assert execution.choose("cuda") == "fp16"


def test_what_a_run_is_kept_at_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "choose", lambda accelerator: "bf16")
    stored = execution.decide(TrainSettings(accelerator="cpu"), None)
    monkeypatch.setattr(execution, "choose", lambda accelerator: pytest.fail("it was tried"))
    assert execution.decide(TrainSettings(accelerator="cpu"), stored.as_dict()).precision == "bf16"


def test_a_gpu_that_others_fill_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(accelerator: str) -> str:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(execution, "choose", full)
    settings = configure("a", {}, [], None).settings
    with pytest.raises(ConflictError, match="lower --batch-size"):
        context.begin(settings, None, None, None, None, never)  # type: ignore[arg-type]


def test_trying_it_draws_nothing_random() -> None:
    before = torch.get_rng_state()
    execution.choose("cpu")
    assert torch.equal(torch.get_rng_state(), before)


def test_resume_keeps_the_first_attempts_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    first = decide(TrainSettings(precision="fp32", accelerator="cpu"), None)
    stored: dict[str, Any] = dataclasses.asdict(first) | {"threads": 7}
    kept = decide(TrainSettings(precision="auto", accelerator="cpu"), stored)
    assert (kept.precision, kept.threads) == ("fp32", 7)
    assert "not bit-equal" not in capsys.readouterr().out
    decide(TrainSettings(accelerator="cpu"), stored | {"torch": "1.0"})
    assert "not bit-equal" in capsys.readouterr().out


def test_missing_accelerator_is_a_conflict() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConflictError, match="--accelerator is cuda"):
        decide(TrainSettings(accelerator="cuda"), None)


@pytest.mark.parametrize("accelerator", ["auto", "cuda"])
def test_unusable_gpu_is_refused_and_not_replaced_by_the_cpu(monkeypatch: pytest.MonkeyPatch, accelerator: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(nvidia, "here", lambda: Driver("550.54.15", "12.4", given=True))
    with pytest.raises(ConflictError, match=rf"550\.54\.15.*CUDA {torch.version.cuda}.*driver \d+ or newer"):
        decide(TrainSettings(accelerator=accelerator), None)
    assert decide(TrainSettings(accelerator="cpu"), None).accelerator == "cpu"


def test_run_stored_without_compile_mode_keeps_its_compile_setting(monkeypatch: Any) -> None:
    names = ("accelerator", "device", "precision", "channels_last", "compile", "deterministic", "threads", "torch")
    first = decide(TrainSettings(accelerator="cpu"), None)
    stored = {name: getattr(first, name) for name in names} | {"compile": True}
    kept = decide(TrainSettings(accelerator="cpu"), stored)
    assert (kept.compile, kept.compile_mode) == (True, "default")
    assert not decide(TrainSettings(accelerator="cpu", compile=False), stored).compile
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not decide(TrainSettings(accelerator="cpu"), stored).compile


def test_fp32_matmul_and_convolution_precision_is_explicit() -> None:
    for deterministic in (True, False):
        execution = decide(TrainSettings(accelerator="cpu", deterministic=deterministic), None)
        execution.apply()
        assert torch.get_float32_matmul_precision() == "high"
        assert torch.backends.cuda.matmul.fp32_precision == torch.backends.cudnn.conv.fp32_precision == "tf32"
        assert torch.backends.cudnn.benchmark is execution.cudnn_benchmark is not deterministic
        assert torch.get_num_threads() == execution.threads
