"""The NVIDIA driver against the CUDA version that torch was built for, and the number of GPUs; torch is not imported.

Minimum driver per CUDA version: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
"""

import ctypes
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from inat_job import events
from inat_job.errors import ConflictError

_NEEDED = {11: 450, 12: 525, 13: 580}
"""By CUDA's major version the driver's least: all minor versions of a major run with it."""

_WITHOUT = "say --accelerator cpu to do without the GPU"
_ABSENT = "start it with --gpus all (Kubernetes: an nvidia.com/gpu limit)"


@dataclass(frozen=True)
class Driver:
    """What is seen of NVIDIA's driver, without starting it.

    `version` is the kernel's part, None where there is none; `cuda` the newest CUDA that the library libcuda can, None
    where it can't be loaded. `given` tells whether this job was given a GPU.
    """

    version: str | None = None
    cuda: str | None = None
    given: bool = False

    @property
    def text(self) -> str:
        """Its name for people."""
        return f"NVIDIA driver {self.version}" if self.version else f"NVIDIA driver (for CUDA up to {self.cuda})"


def library_cuda() -> str | None:
    """The newest CUDA that libcuda can, such as "13.0", or None where the library is not here."""
    found = ctypes.c_int()
    try:
        status = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(found))
    except (OSError, AttributeError):
        return None
    return f"{found.value // 1000}.{found.value % 1000 // 10}" if status == 0 and found.value else None


def here(
    environment: Mapping[str, str] = os.environ,
    root: Path = Path("/"),
    library: Callable[[], str | None] = library_cuda,
) -> Driver:
    """The driver of this machine, by the files under `root` and its library."""
    said = re.search(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)", _text(root / "proc/driver/nvidia/version"))
    hidden = environment.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    nodes = any((root / "dev").glob("nvidia[0-9]*")) or (root / "dev/dxg").exists()  # the latter in Windows' Linux
    return Driver(said[1] if said else None, library(), nodes and not hidden)


def wheel_cuda() -> str | None:
    """The CUDA that the installed torch was built for, read without importing it; None for a build without."""
    spec = importlib.util.find_spec("torch")
    folders = spec.submodule_search_locations if spec else None
    text = _text(Path(next(iter(folders)), "version.py")) if folders else ""
    said = re.search(r"^cuda\b[^=]*=\s*['\"]([\d.]+)['\"]", text, re.M)
    return said[1] if said else None


def needed_driver(cuda: str) -> int | None:
    """The least driver for a CUDA version, such as 580 for "13.0"; None for one that is not known here."""
    major = cuda.partition(".")[0]
    return _NEEDED.get(int(major)) if major.isdecimal() else None


def trouble(cuda: str | None, driver: Driver) -> str:
    """The sentence on why a torch built for `cuda` can't use the GPU that the job was given; empty where it can."""
    if not driver.given:
        return ""
    if cuda is None:
        return f"This torch is built without CUDA, and the job was given a GPU: install a CUDA build, or {_WITHOUT}."
    if _too_old(cuda, driver):
        needed = needed_driver(cuda)
        return (
            f"The {driver.text} is too old for this torch, which is built for CUDA {cuda} and needs "
            f"{f'driver {needed} or newer' if needed else 'a newer one'}: update the machine's driver, or {_WITHOUT}."
        )
    if driver.cuda is None:
        return (
            f"The {driver.text if driver.version else 'NVIDIA driver'} has no libcuda.so.1 here: start the container "
            f"by NVIDIA's toolkit (--gpus all, NVIDIA_DRIVER_CAPABILITIES=compute,utility), or {_WITHOUT}."
        )
    return ""


def absent(driver: Driver) -> str:
    """The sentence for a job without a GPU on a machine that has a driver for one; empty for any other."""
    if driver.given or not driver.version:
        return ""
    return f"This machine has {driver.text}, and the job was given no GPU: {_ABSENT}, or say --accelerator cpu."


def require_used(cuda: str | None, driver: Driver) -> None:
    """What is to be said when torch, built for `cuda`, finds no CUDA device.

    Raises ConflictError where the job was given a GPU, which would lie idle for hours; warns where there may be one.
    """
    if driver.given:
        raise ConflictError(
            trouble(cuda, driver)
            or f"torch, built for CUDA {cuda}, can't use the GPU that this job was given ({driver.text}): see what "
            f"nvidia-smi says, or {_WITHOUT}."
        )
    if sentence := absent(driver):
        events.warn(sentence)


def _too_old(cuda: str, driver: Driver) -> bool:
    """The library is believed before the kernel's part: with a compatibility package it is the newer one."""
    if driver.cuda:
        return _major(driver.cuda) < _major(cuda)
    needed = needed_driver(cuda)
    return bool(driver.version and needed and _major(driver.version) < needed)


def _major(version: str) -> int:
    return int(version.partition(".")[0])


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


_DEVICE = re.compile(r"nvidia\d+")
_ASK = "import torch; print(torch.cuda.device_count())"
_PATIENCE_S = 120.0


def count(devices: Path = Path("/dev")) -> int:
    """GPUs that torch may use here, 0 without one.

    A container sees a device file for each GPU that it was given. Where there is more than one, torch is asked, which
    knows of CUDA_VISIBLE_DEVICES, of parts of a GPU, and of drivers that are too old.
    """
    seen = sum(bool(_DEVICE.fullmatch(path.name)) for path in devices.glob("nvidia*"))
    return seen if seen < 2 else _asked()


def _asked() -> int:
    command = [sys.executable, "-c", _ASK]
    said = subprocess.run(command, capture_output=True, timeout=_PATIENCE_S, check=False)  # noqa: S603
    return int(said.stdout) if said.stdout.strip().isdigit() else 0
