"""The arithmetic a device claims is tried before it is used."""

import math
from typing import Any

import pytest
import torch

from inat_job.configuration import configure
from inat_job.errors import ConflictError
from inat_job.settings import TrainSettings
from inat_job.signals import never
from inat_job.training import context, execution


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
