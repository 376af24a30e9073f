"""The driver against the wheel: what is read of a machine, and what is said of it."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inat_job.errors import ConflictError
from inat_job.host import nvidia
from inat_job.host.nvidia import Driver, driver_problem, find_driver, minimum_driver, require_gpu, wheel_cuda

CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: x\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (x)  Sun Jul 27 2025\n"
VERSIONS = st.tuples(st.integers(390, 700), st.integers(0, 200)).map(lambda pair: f"{pair[0]}.{pair[1]:02}")
CUDAS = st.tuples(st.integers(11, 13), st.integers(0, 9)).map(lambda pair: f"{pair[0]}.{pair[1]}")


def machine(root: Path, version: str = "", node: str = "") -> Path:
    for name, text in (("proc/driver/nvidia/version", version), (node and f"dev/{node}", "")):
        if name and (text or name.startswith("dev")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


@pytest.mark.parametrize(("text", "version"), [(CLOSED, "550.54.15"), (OPEN, "580.65.06"), ("what?", None), ("", None)])
def test_the_kernel_tells_its_version(tmp_path: Path, text: str, version: str | None) -> None:
    assert find_driver({}, machine(tmp_path, text, "nvidia0"), lambda: "12.4") == Driver(version, "12.4", has_gpu=True)


@pytest.mark.parametrize(
    ("node", "environment", "expected"),
    [
        ("nvidia0", {}, True),
        ("nvidia7", {"CUDA_VISIBLE_DEVICES": "7"}, True),
        ("nvidia0", {"CUDA_VISIBLE_DEVICES": ""}, False),
        ("nvidia0", {"CUDA_VISIBLE_DEVICES": "-1"}, False),
        ("nvidiactl", {}, False),
        ("dxg", {}, True),
        ("", {}, False),
    ],
)
def test_a_gpu_is_given_by_its_device(tmp_path: Path, node: str, environment: dict[str, str], expected: bool) -> None:
    assert find_driver(environment, machine(tmp_path, OPEN, node), lambda: None).has_gpu is expected


def test_the_wheel_is_read_as_torch_reads_it() -> None:
    assert wheel_cuda() == torch.version.cuda


@pytest.mark.parametrize(
    ("cuda", "found", "words"),
    [
        ("13.0", Driver("550.54.15", "12.4", True), ("550.54.15", "CUDA 13.0", "driver 580 or newer", "update")),
        ("13.0", Driver("550.54.15", None, True), ("550.54.15", "driver 580 or newer")),
        ("12.8", Driver("470.1", "11.4", True), ("470.1", "driver 525 or newer")),
        ("14.0", Driver("580.1", "13.0", True), ("580.1", "CUDA 14.0", "a newer one")),
        (None, Driver("580.1", "13.0", True), ("without CUDA", "--accelerator cpu")),
        ("13.0", Driver("580.1", None, True), ("libcuda.so.1", "--gpus all")),
    ],
)
def test_what_is_wrong_is_named_with_its_mend(cuda: str | None, found: Driver, words: tuple[str, ...]) -> None:
    sentence = driver_problem(cuda, found)
    assert all(word in sentence for word in (*words, "--accelerator cpu"))
    with pytest.raises(ConflictError, match="--accelerator cpu"):
        require_gpu(cuda, found)


def test_a_compatibility_package_is_believed_before_the_kernel() -> None:
    assert driver_problem("13.0", Driver("550.54.15", "13.0", has_gpu=True)) == ""


def test_a_gpu_that_torch_cannot_use_for_no_known_reason_ends_the_job_too() -> None:
    with pytest.raises(ConflictError, match=r"580\.65.*nvidia-smi"):
        require_gpu("13.0", Driver("580.65", "13.0", has_gpu=True))


def test_a_driver_without_a_gpu_is_said_and_no_driver_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    require_gpu("13.0", Driver("580.65", None, has_gpu=False))
    assert "--gpus all" in capsys.readouterr().out
    require_gpu("13.0", Driver())
    assert capsys.readouterr().out == ""


@given(VERSIONS, CUDAS)
def test_a_newer_driver_is_never_worse(version: str, cuda: str) -> None:
    major = int(version.split(".")[0])
    fits = driver_problem(cuda, Driver(version, cuda, has_gpu=True)) == ""
    assert fits  # its library can that CUDA
    refused = "too old" in driver_problem(cuda, Driver(version, None, has_gpu=True))
    assert refused == (major < (minimum_driver(cuda) or 0))
    assert not ("too old" in driver_problem(cuda, Driver(f"{major + 1}.0", None, has_gpu=True)) and not refused)


@given(st.text(max_size=200))
def test_whatever_a_file_says_is_no_bug(text: str) -> None:
    version = nvidia.minimum_driver(text)
    assert version is None or version in (450, 525, 580)
