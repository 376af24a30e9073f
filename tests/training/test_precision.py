"""The arithmetic a device claims is tried before it is used."""

import math
from typing import Any

import pytest
import torch

from inat_job.training import precision


def test_a_device_that_does_well_is_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert precision.error_of("cpu", torch.bfloat16) < 0.02
    assert precision.error_of("cpu", torch.float16) < 0.02
    assert precision.choose("cpu") == "bf16"


@pytest.mark.parametrize("factor", [1.1, math.nan, math.inf])
def test_a_device_that_computes_nonsense_gets_fp32(
    factor: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = torch.nn.functional.conv2d

    def wrong(pictures: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return right(pictures, *args, **kwargs) * (factor if pictures.dtype is torch.bfloat16 else 1)

    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(precision.F, "conv2d", wrong)
    assert precision.choose("cpu") == "fp32"
    assert "fp32 is used" in capsys.readouterr().out


def test_a_device_that_refuses_gets_fp32() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert precision.error_of("cuda", torch.bfloat16) == math.inf


def test_trying_it_draws_nothing_random() -> None:
    before = torch.get_rng_state()
    precision.choose("cpu")
    assert torch.equal(torch.get_rng_state(), before)
