"""nvidia.py: reading the driver, and comparing it with the CUDA version of torch."""

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inat_job.errors import ConflictError, DeviceError
from inat_job.host import nvidia
from inat_job.host.nvidia import Driver, driver_problem, find_driver, minimum_driver, require_gpu, wheel_cuda

CLOSED = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version: x\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (x)  Sun Jul 27 2025\n"
VERSIONS = st.tuples(st.integers(390, 700), st.integers(0, 200)).map(lambda pair: f"{pair[0]}.{pair[1]:02}")
CUDAS = st.tuples(st.integers(11, 13), st.integers(0, 9)).map(lambda pair: f"{pair[0]}.{pair[1]}")


def machine(root: Path, version: str = "", device: str = "") -> Path:
    for name, text in (("proc/driver/nvidia/version", version), (device and f"dev/{device}", "")):
        if name and (text or name.startswith("dev")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


@pytest.mark.parametrize(("text", "version"), [(CLOSED, "550.54.15"), (OPEN, "580.65.06"), ("what?", None), ("", None)])
def test_driver_version_of_the_kernel_module(tmp_path: Path, text: str, version: str | None) -> None:
    assert find_driver({}, machine(tmp_path, text, "nvidia0"), lambda: "12.4") == Driver(version, "12.4", has_gpu=True)


@pytest.mark.parametrize(
    ("device", "environment", "expected"),
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
def test_has_gpu_by_device_file(tmp_path: Path, device: str, environment: dict[str, str], expected: bool) -> None:
    assert find_driver(environment, machine(tmp_path, OPEN, device), lambda: None).has_gpu is expected


def test_wheel_cuda_is_torchs() -> None:
    assert wheel_cuda() == torch.version.cuda


@pytest.mark.parametrize(
    ("cuda", "driver", "words"),
    [
        (
            "13.0",
            Driver("550.54.15", "12.4", True),
            ("550.54.15", "CUDA 13.0", "driver 580 or newer", "built for CUDA 12", "update"),
        ),
        ("13.0", Driver("550.54.15", None, True), ("550.54.15", "driver 580 or newer")),
        ("12.8", Driver("470.1", "11.4", True), ("470.1", "driver 525 or newer")),
        ("14.0", Driver("580.1", "13.0", True), ("580.1", "CUDA 14.0", "a newer one")),
        (None, Driver("580.1", "13.0", True), ("without CUDA", "--accelerator cpu")),
        ("13.0", Driver("580.1", None, True), ("libcuda.so.1", "--gpus all")),
    ],
)
def test_driver_problem_names_the_fix(cuda: str | None, driver: Driver, words: tuple[str, ...]) -> None:
    problem = driver_problem(cuda, driver)
    assert all(word in problem for word in (*words, "--accelerator cpu"))
    with pytest.raises(ConflictError, match="--accelerator cpu"):
        require_gpu(cuda, driver)


def test_library_takes_precedence_over_the_kernel_module() -> None:
    assert driver_problem("13.0", Driver("550.54.15", "13.0", has_gpu=True)) == ""


def test_gpu_that_torch_cannot_use_for_an_unknown_reason() -> None:
    with pytest.raises(DeviceError, match=r"580\.65.*nvidia-smi"):  # another machine may have a GPU that works
        require_gpu("13.0", Driver("580.65", "13.0", has_gpu=True))


def test_warning_for_a_driver_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    require_gpu("13.0", Driver("580.65", None, has_gpu=False))
    assert "--gpus all" in capsys.readouterr().out
    require_gpu("13.0", Driver())
    assert capsys.readouterr().out == ""


@given(VERSIONS, CUDAS)
def test_newer_driver_is_never_refused(version: str, cuda: str) -> None:
    major = int(version.split(".")[0])
    fits = driver_problem(cuda, Driver(version, cuda, has_gpu=True)) == ""
    assert fits  # its library supports that CUDA version
    refused = "too old" in driver_problem(cuda, Driver(version, None, has_gpu=True))
    assert refused == (major < (minimum_driver(cuda) or 0))
    assert not ("too old" in driver_problem(cuda, Driver(f"{major + 1}.0", None, has_gpu=True)) and not refused)


@given(st.text(max_size=200))
def test_minimum_driver_of_any_text(text: str) -> None:
    version = nvidia.minimum_driver(text)
    assert version is None or version in (450, 525, 580)


def test_unused_driver_has_one_colon_before_the_fix() -> None:
    """`check_device` splits the warning there."""
    what, _, fix = nvidia.unused_driver(Driver("580.65", None, has_gpu=False)).partition(": ")
    assert (what.endswith("given no GPU"), ": " in fix) == (True, False)


@pytest.mark.parametrize(("devices", "expected"), [((), 0), (("nvidiactl", "nvidia-uvm"), 0), (("nvidia3",), 1)])
def test_gpu_count_without_torch(tmp_path: Path, devices: tuple[str, ...], expected: int) -> None:
    for name in devices:
        (tmp_path / name).touch()
    assert nvidia.gpu_count(tmp_path) == expected


def test_gpu_count_of_several_devices_is_torchs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "_torch_gpu_count", lambda: 7)
    for name in ("nvidia0", "nvidia1"):
        (tmp_path / name).touch()
    assert nvidia.gpu_count(tmp_path) == 7


GPUS = {"V100": (7, 0), "T4": (7, 5), "A10G": (8, 6), "H100": (9, 0)}
BUILT = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
CAPABILITIES = st.tuples(st.integers(3, 13), st.integers(0, 9))


@given(CAPABILITIES, CAPABILITIES)
def test_code_runs_by_the_rules_of_binaries_and_ptx(built: tuple[int, int], capability: tuple[int, int]) -> None:
    name = f"{built[0]}{built[1]}"
    binary, ptx = (nvidia.runs_on(f"{kind}_{name}", capability) for kind in ("sm", "compute"))
    assert binary == (built[0] == capability[0] and built[1] <= capability[1])
    assert ptx == (built <= capability)
    assert not binary or ptx
    assert nvidia.runs_on(f"sm_{name}a", capability) == (built == capability)
    assert nvidia.runs_on(f"sm_{name}f", capability) == binary


@given(st.text(max_size=20), CAPABILITIES)
def test_unknown_architecture_runs_nowhere(text: str, capability: tuple[int, int]) -> None:
    assert not nvidia.runs_on(f"x{text}", capability)


@given(CAPABILITIES, st.lists(CAPABILITIES.map(lambda built: f"sm_{built[0]}{built[1]}"), max_size=5))
def test_more_code_never_refuses_a_gpu(capability: tuple[int, int], architectures: list[str]) -> None:
    gpus = [nvidia.Gpu("X", capability)]
    few, more = (nvidia.architecture_problem(gpus, [*architectures, *more]) for more in ([], ["compute_30"]))
    assert more == ""
    assert (few == "") == (not architectures or any(nvidia.runs_on(each, capability) for each in architectures))


@pytest.mark.parametrize("name", GPUS)
def test_gpu_older_than_the_wheel_is_named(name: str) -> None:
    gpu = nvidia.Gpu(name, GPUS[name])
    for architectures in (BUILT, nvidia.oldest_architecture("13.0")):
        problem = nvidia.architecture_problem([nvidia.Gpu("H100", (9, 0)), gpu], architectures)
        assert (problem != "") == (name == "V100")
        assert not problem or problem.startswith("The V100 has compute capability 7.0, and this torch has code for")
    assert nvidia.architecture_problem([gpu], ()) == ""


def test_oldest_architecture_by_cuda_version() -> None:
    assert [nvidia.oldest_architecture(each) for each in ("13.0", "12.8", "99.1", "", None)] == [
        ("compute_75",),
        ("compute_50",),
        (),
        (),
        (),
    ]


@pytest.mark.soak
def test_wheel_architectures_are_torchs() -> None:
    assert nvidia.wheel_architectures(60.0) == tuple(torch.cuda.get_arch_list())
    assert nvidia.wheel_architectures(0.01) == ()


class FakeCuda:
    """libcuda with two GPUs, as ctypes calls it; `broken` names a call that fails."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken

    def __getattr__(self, name: str) -> Any:
        return lambda *args: 999 if name == self.broken else self._answer(name, args)

    def _answer(self, name: str, args: Any) -> int:
        if name == "cuDeviceGetCount":
            args[0]._obj.value = 2
        elif name == "cuDeviceGet":
            args[0]._obj.value = args[1]
        elif name == "cuDeviceGetName":
            args[0].value = b"Tesla V100" if args[2].value else b"NVIDIA A10G"
        elif name == "cuDeviceGetAttribute":
            args[0]._obj.value = {75: (8, 7), 76: (6, 0)}[args[1]][args[2].value]
        return 0


def test_visible_gpus_are_libcudas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda name: FakeCuda())
    assert nvidia.visible_gpus() == (nvidia.Gpu("NVIDIA A10G", (8, 6)), nvidia.Gpu("Tesla V100", (7, 0)))
    for call in ("cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDeviceGetAttribute"):
        monkeypatch.setattr(nvidia.ctypes, "CDLL", lambda name, call=call: FakeCuda(call))
        assert nvidia.visible_gpus() == ()


def test_no_libcuda_shows_no_gpus() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert nvidia.visible_gpus() == ()


NVML = """
#include <string.h>
typedef struct { unsigned gpu, memory; } nvmlUtilization_t;
static int initialised, device;
int nvmlInit_v2(void) { initialised = 1; return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
    if (!initialised) return 1;
    if (strcmp(uuid, "GPU-b") && strcmp(uuid, "GPU-mig")) return 6;
    *handle = strcmp(uuid, "GPU-b") ? 0 : &device;
    return 0;
}
int nvmlDeviceGetUtilizationRates(void *handle, nvmlUtilization_t *use) {
    if (handle != &device) return 3;
    use->gpu = 87;
    use->memory = 12;
    return 0;
}
"""
"""What is called of NVML, with its codes: 1 uninitialised, 3 not supported, 6 not found."""


def test_gpu_use_is_asked_of_nvml(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler, for a library that answers as NVML does")
    library = tmp_path / "libnvidia-ml.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-x", "c", "-o", library, "-"], input=NVML, text=True, check=True)
    load = {library.name: ctypes.CDLL(str(library))}.__getitem__
    assert nvidia.gpu_use("GPU-b", load) == 0.87
    with pytest.raises(OSError, match="nvmlDeviceGetHandleByUUID returned 6"):
        nvidia.gpu_use("GPU-a", load)
    with pytest.raises(OSError, match="nvmlDeviceGetUtilizationRates returned 3"):
        nvidia.gpu_use("GPU-mig", load)
