"""How the arithmetic is decided: a precision is tried before it is used, and a resume keeps what was decided."""

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from inat_job.configuration import configure
from inat_job.data import augment
from inat_job.distributed.ranks import SINGLE_RANK, Rank
from inat_job.errors import ConflictError
from inat_job.host import nvidia
from inat_job.host.nvidia import Driver
from inat_job.job_status import STATUS
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
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
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


def test_missing_precision_is_decided_again() -> None:
    settings = TrainSettings(accelerator="cpu", precision="fp32")
    stored = execution.decide(settings, None).as_dict() | {"threads": 7}
    del stored["precision"]
    kept = execution.decide(settings, stored)
    assert (kept.precision, kept.threads) == ("fp32", 7)


def test_resume_keeps_the_mode_of_compilation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("inat_job.host.environment.missing_for_compilation", lambda on_gpu: [])
    settings = TrainSettings(accelerator="cpu", precision="fp32", compile=True)
    stored = execution.decide(settings, None).as_dict() | {"compile_mode": "reduce-overhead"}
    assert execution.decide(settings, stored).compile_mode == "reduce-overhead"
    assert "not bit-equal" not in capsys.readouterr().out


@pytest.mark.parametrize("begun_with", [1, None])
def test_resume_of_a_run_with_other_views_warns(begun_with: int | None, capsys: pytest.CaptureFixture[str]) -> None:
    settings = TrainSettings(accelerator="cpu", precision="fp32")
    stored = execution.decide(settings, None).as_dict()
    assert execution.decide(settings, stored).view_format == augment.VIEW_FORMAT
    assert "not bit-equal" not in capsys.readouterr().out
    del stored["view_format"]  # as before it was stored
    stored |= {} if begun_with is None else {"view_format": begun_with}
    assert execution.decide(settings, stored).view_format == augment.VIEW_FORMAT
    warning = capsys.readouterr().out
    assert "not bit-equal" in warning
    assert f'"view_format": [1, {augment.VIEW_FORMAT}]' in warning


@pytest.mark.soak
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


class FakeGpu:
    """What torch.cuda says of a machine with `visible` GPUs of one kind, and what is asked of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, bf16: bool, visible: int = 1, major: int = 8) -> None:
        self.chosen: list[int] = []
        gpu = SimpleNamespace(name="Tesla T4", major=major, minor=5, uuid="1b2c")
        fakes = {
            "is_available": lambda: True,
            "device_count": lambda: visible,
            "set_device": self.chosen.append,
            "get_device_properties": lambda index: gpu,
            "get_device_name": lambda: gpu.name,
            "get_arch_list": lambda: ["sm_75", "sm_80"],
            "is_bf16_supported": lambda including_emulation: bf16 or including_emulation,
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        self.faults: dict[torch.dtype, str] = {}
        monkeypatch.setattr(execution, "convolution_fault", lambda accelerator, dtype: self.faults.get(dtype))


@pytest.mark.parametrize(
    ("stored", "bf16", "faults", "kept"),
    [
        ("bf16", True, (), "bf16"),
        ("bf16", False, (), "fp16"),
        ("bf16", False, (torch.float16,), "fp32"),
        ("bf16", True, (torch.bfloat16,), "fp16"),
        ("fp16", False, (), "fp16"),
        ("fp16", True, (torch.float16,), "bf16"),
        ("fp16", False, (torch.float16,), "fp32"),
        ("fp32", True, (torch.float16, torch.bfloat16), "fp32"),
    ],
)
def test_precision_of_a_resume_on_another_gpu(
    stored: str,
    bf16: bool,
    faults: tuple[torch.dtype, ...],
    kept: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake = FakeGpu(monkeypatch, bf16=True)
    first = execution.decide(TrainSettings(precision=stored), None).as_dict()
    fake = FakeGpu(monkeypatch, bf16)
    fake.faults = dict.fromkeys(faults, "fails (x)")
    decided = execution.decide(TrainSettings(), first)
    assert decided == execution.decide(TrainSettings(), decided.as_dict())  # and stays with it
    assert decided.precision == kept
    out = capsys.readouterr().out
    assert ("This resume is not bit-equal" in out) == (kept != stored)
    assert (f"The run was computed in {stored}, but on Tesla T4 it" in out) == (kept != stored)


def test_precision_of_a_resume_on_another_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cpu = TrainSettings(accelerator="cpu")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    stored = execution.decide(cpu, None).as_dict()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert (stored["precision"], execution.decide(cpu, stored).precision) == ("bf16", "fp32")
    assert "not bit-equal" in capsys.readouterr().out
    asked = TrainSettings(accelerator="cpu", precision="bf16")
    assert execution.decide(asked, None).precision == "bf16"  # slow, and as asked
    assert execution.decide(asked, stored).precision == "bf16"
    out = capsys.readouterr().out
    assert "not bit-equal" not in out
    assert out.count("--precision is bf16, which cpu ") == 2


@pytest.mark.parametrize("resumed", [False, True])
def test_precision_that_is_asked_for_and_missing_is_a_conflict(resumed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch, bf16=True)
    asked = TrainSettings(precision="bf16")
    stored = execution.decide(asked, None).as_dict() if resumed else None
    fake = FakeGpu(monkeypatch, bf16=False)
    with pytest.raises(ConflictError, match=r"--precision is bf16, but on Tesla T4 it is only emulated"):
        execution.decide(asked, stored)
    fake.faults = {torch.float16: "is wrong by 9.0%"}
    with pytest.raises(ConflictError, match=r"--precision is fp16, but on Tesla T4 it is wrong by 9\.0%"):
        execution.decide(TrainSettings(precision="fp16"), None)


def test_fp16_on_a_cpu_is_a_conflict() -> None:
    with pytest.raises(ConflictError, match="--precision is fp16, but on cpu .* it does not exist"):
        execution.decide(TrainSettings(accelerator="cpu", precision="fp16"), None)


def test_ranks_with_different_gpus_are_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch, bf16=True)
    stored = execution.decide(TrainSettings(), None).as_dict()
    FakeGpu(monkeypatch, bf16=False, visible=2)
    with pytest.raises(ConflictError, match="Rank 0 computes in bf16, but on Tesla T4 of rank 1 it is only emulated"):
        execution.decide(TrainSettings(), stored, Rank(1, 2, 1, 2))


@pytest.mark.parametrize(("visible", "chosen"), [(1, 0), (4, 3), (8, 3)])
def test_rank_takes_its_gpu_before_anything_uses_one(
    visible: int, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeGpu(monkeypatch, bf16=True, visible=visible)
    before: list[int] = []
    monkeypatch.setattr(execution, "convolution_fault", lambda accelerator, dtype: before.extend(fake.chosen))
    execution.decide(TrainSettings(), None, Rank(3, 4, 3, 4))
    assert before == fake.chosen == [chosen]
    assert STATUS.gpu == f"GPU {chosen} (Tesla T4, GPU-1b2c)"


def test_more_ranks_than_gpus_are_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch, bf16=True, visible=2)
    with pytest.raises(ConflictError, match="LOCAL_RANK is 3, but this process sees 2 GPUs: start fewer ranks"):
        execution.decide(TrainSettings(), None, Rank(3, 4, 3, 4))


def test_gpu_that_torch_has_no_code_for_is_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeGpu(monkeypatch, bf16=False, major=7)
    execution.decide(TrainSettings(), None)
    FakeGpu(monkeypatch, bf16=False, major=6)
    with pytest.raises(ConflictError, match=r"Tesla T4 has compute capability 6\.5, and this torch has code for sm_75"):
        execution.decide(TrainSettings(), None)


def test_precision_without_an_engine_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    monkeypatch.setattr(execution.F, "conv2d", none)
    assert "unable to find an engine" in (execution.convolution_fault("cpu", torch.bfloat16) or "")


@pytest.mark.parametrize("text", ["CUDA error: unspecified launch failure", "CUDA out of memory"])
def test_fault_of_the_whole_device_is_none_of_a_precision(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(text)

    monkeypatch.setattr(execution.F, "conv2d", broken)
    with pytest.raises(RuntimeError, match=text):
        execution.convolution_fault("cpu", torch.bfloat16)
