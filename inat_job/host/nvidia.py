"""The NVIDIA driver, compared with the CUDA version that torch was built for, and the GPUs: how many, how busy.

torch is not imported. Minimum driver of each CUDA version:
https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
"""

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inat_job import events
from inat_job.errors import ConflictError, DeviceError
from inat_job.host.system_files import read_text

_MINIMUM_DRIVERS = {11: 450, 12: 525, 13: 580}
"""Minimum driver by major version of CUDA: it runs all minor versions of it."""

_OLDEST_CAPABILITY = {11: 35, 12: 50, 13: 75}
"""Oldest compute capability that a major version of CUDA compiles for, times ten:
https://docs.nvidia.com/cuda/cuda-toolkit-release-notes/"""

_USE_CPU = "use --accelerator cpu to run without the GPU"
_GIVE_GPU = "start it with --gpus all (in Kubernetes with an nvidia.com/gpu limit)"

_GPU_DEVICE = re.compile(r"nvidia\d+")
_PRINT_GPU_COUNT = "import torch; print(torch.cuda.device_count())"
_PRINT_ARCHITECTURES = "import torch; print(*torch.cuda.get_arch_list())"
_CAPABILITY_ATTRIBUTES = (75, 76)
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR in cuda.h."""

_IMPORT_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver, as far as it can be seen without starting it.

    `version` is the kernel module's, None if there is none. `cuda` is the newest CUDA version that libcuda supports,
    None if the library cannot be loaded. `has_gpu` says whether this job was given a GPU.
    """

    version: str | None = None
    cuda: str | None = None
    has_gpu: bool = False

    @property
    def text(self) -> str:
        """The driver's name in messages."""
        return f"NVIDIA driver {self.version}" if self.version else f"NVIDIA driver (for CUDA up to {self.cuda})"


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process sees, with its compute capability (major, minor)."""

    name: str
    capability: tuple[int, int]


def library_cuda() -> str | None:
    """The newest CUDA version that libcuda supports, such as "13.0"; None without the library."""
    number = ctypes.c_int()
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}" if status == 0 and number.value else None


class _Utilization(ctypes.Structure):
    """nvmlUtilization_t: percentages of the last sample period, which is a sixth of a second to one second long."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


def gpu_use(uuid: str, load: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> float:
    """The share of the last moments, 0..1, in which a kernel ran on a GPU, such as "GPU-5e1c7a2b-...".

    NVML counts every process. Raises OSError if it is missing or has no figure, as for a slice of a GPU (MIG).
    https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
    """
    nvml, handle, use = load("libnvidia-ml.so.1"), ctypes.c_void_p(), _Utilization()
    for name, arguments in (
        ("nvmlInit_v2", ()),  # again each time: NVML only counts it
        ("nvmlDeviceGetHandleByUUID", (uuid.encode(), ctypes.byref(handle))),
        ("nvmlDeviceGetUtilizationRates", (handle, ctypes.byref(use))),
    ):
        if status := getattr(nvml, name)(*arguments):
            raise OSError(f"{name} returned {status}")
    return float(use.gpu) / 100


def find_driver(
    environment: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
    library: Callable[[], str | None] = library_cuda,
) -> Driver:
    """This machine's driver, by the files under `root` and its library."""
    version = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", read_text(root / "proc/driver/nvidia/version"))
    is_hidden = environment.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    devices = any((root / "dev").glob("nvidia[0-9]*")) or (root / "dev/dxg").exists()  # dxg: Linux under Windows
    return Driver(version[1] if version else None, library(), devices and not is_hidden)


def wheel_cuda() -> str | None:
    """The CUDA version that the installed torch was built for, read without importing it; None for a CPU build."""
    spec = importlib.util.find_spec("torch")
    folders = spec.submodule_search_locations if spec else None
    text = read_text(Path(next(iter(folders)), "version.py")) if folders else ""
    version = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.M)
    return version[1] if version else None


def minimum_driver(cuda: str) -> int | None:
    """The minimum driver of a CUDA version, such as 580 for "13.0"; None for an unknown version."""
    major = cuda.partition(".")[0]
    return _MINIMUM_DRIVERS.get(int(major)) if major.isdecimal() else None


def driver_problem(cuda: str | None, driver: Driver) -> str:
    """Why a torch built for `cuda` cannot use the GPU that the job was given, with the fix; empty if it can."""
    if not driver.has_gpu:
        return ""
    if cuda is None:
        return f"This torch is built without CUDA, but the job was given a GPU: install a CUDA build, or {_USE_CPU}."
    if _is_too_old(cuda, driver):
        minimum = minimum_driver(cuda)
        image = "" if _is_too_old("12", driver) else "use an image built for CUDA 12 (docs/container.md), "
        needed = f"driver {minimum} or newer" if minimum else "a newer one"
        return (
            f"The {driver.text} is too old for this torch, which is built for CUDA {cuda} and needs {needed}: "
            f"{image}update the machine's driver, or {_USE_CPU}."
        )
    if driver.cuda is None:
        return (
            f"The {driver.text if driver.version else 'NVIDIA driver'} has no libcuda.so.1 here: start the container "
            f"with NVIDIA's toolkit (--gpus all, NVIDIA_DRIVER_CAPABILITIES=compute,utility), or {_USE_CPU}."
        )
    return ""


def visible_gpus() -> tuple[Gpu, ...]:
    """The GPUs that CUDA shows this process, in its order; none where the driver does not answer."""
    try:
        cuda, count = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
            return ()
        return tuple(_gpu(cuda, number) for number in range(count.value))
    except (OSError, AttributeError):
        return ()


def _gpu(cuda: ctypes.CDLL, number: int) -> Gpu:
    device, name, value = ctypes.c_int(), ctypes.create_string_buffer(256), ctypes.c_int()
    if cuda.cuDeviceGet(ctypes.byref(device), number) or cuda.cuDeviceGetName(name, len(name), device):
        raise OSError(number)
    capability = []
    for attribute in _CAPABILITY_ATTRIBUTES:
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            raise OSError(number)
        capability.append(value.value)
    return Gpu(name.value.decode(errors="replace"), (capability[0], capability[1]))


def oldest_architecture(cuda: str | None) -> tuple[str, ...]:
    """The least that a torch built for `cuda` may have code for, as torch.cuda.get_arch_list() names it."""
    major = (cuda or "").partition(".")[0]
    oldest = _OLDEST_CAPABILITY.get(int(major)) if major.isdecimal() else None
    return (f"compute_{oldest}",) if oldest else ()


def wheel_architectures(seconds: float) -> tuple[str, ...]:
    """What the installed torch has code for, which another process imports; empty if that takes too long."""
    return tuple(_python_output(_PRINT_ARCHITECTURES, seconds).split())


def runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for `architecture` runs on a GPU, by NVIDIA's rules of binary and PTX compatibility.

    Binaries (sm_86) run on the same major version from their minor version on, PTX (compute_75) on anything newer, code
    for one architecture alone (sm_90a) only there:
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#binary-compatibility
    """
    found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
    if not found:
        return False
    built = int(found[2]), int(found[3])
    if found[4] == "a":
        return built == capability
    if found[1] == "sm" or found[4]:
        return built[0] == capability[0] and built[1] <= capability[1]
    return built <= capability


def architecture_problem(gpus: Sequence[Gpu], architectures: Sequence[str]) -> str:
    """Why a torch with code for `architectures` cannot use these GPUs, with the fix; empty if it can, or if unknown."""
    for gpu in gpus if architectures else ():
        if not any(runs_on(each, gpu.capability) for each in architectures):
            return (
                f"The {gpu.name} has compute capability {gpu.capability[0]}.{gpu.capability[1]}, and this torch has "
                f"code for {', '.join(architectures)}: use another GPU, hide it with CUDA_VISIBLE_DEVICES, or "
                f"{_USE_CPU}."
            )
    return ""


def unused_driver(driver: Driver) -> str:
    """The warning for a job without a GPU on a machine that has a GPU driver; empty for any other."""
    if driver.has_gpu or not driver.version:
        return ""
    return f"This machine has {driver.text}, but the job was given no GPU: {_GIVE_GPU}, or use --accelerator cpu."


def require_gpu(cuda: str | None, driver: Driver) -> None:
    """Report that torch, built for `cuda`, finds no CUDA device.

    Raises ConflictError if the job was given one that the driver does not fit, DeviceError if one that should work;
    warns if there may be one.
    """
    if driver.has_gpu:
        if problem := driver_problem(cuda, driver):
            raise ConflictError(problem)
        raise DeviceError(
            f"torch, built for CUDA {cuda}, cannot use the GPU that this job was given ({driver.text}): check the "
            f"output of nvidia-smi, or {_USE_CPU}."
        )
    if warning := unused_driver(driver):
        events.warn(warning)


def _is_too_old(cuda: str, driver: Driver) -> bool:
    """The library takes precedence over the kernel module: it is newer where a compatibility package is installed."""
    if driver.cuda:
        return _major(driver.cuda) < _major(cuda)
    minimum = minimum_driver(cuda)
    return bool(driver.version and minimum and _major(driver.version) < minimum)


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def gpu_count(devices: Path = Path("/dev")) -> int:
    """GPUs that torch can use here.

    A container has a device file for each GPU that it was given. If there are several, a separate process counts them
    with torch, which also considers CUDA_VISIBLE_DEVICES, MIG slices and drivers that are too old.
    """
    count = sum(bool(_GPU_DEVICE.fullmatch(path.name)) for path in devices.glob("nvidia*"))
    return count if count < 2 else _torch_gpu_count()


def _torch_gpu_count() -> int:
    count = _python_output(_PRINT_GPU_COUNT, _IMPORT_TIMEOUT_S)
    return int(count) if count.isdigit() else 0


def _python_output(program: str, seconds: float) -> str:
    """What a program prints; empty if it fails or takes longer."""
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.strip()
