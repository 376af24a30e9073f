"""What the errors of CUDA, cuBLAS, cuDNN and NCCL mean for a job, by their types and texts, and what to do about them.

torch is not imported. Texts of CUDA: https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__TYPES.html; of cuDNN:
https://docs.nvidia.com/deeplearning/cudnn/latest/api/cudnn-graph-library.html; of NCCL: `ncclGetErrorString`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from inat_job.errors import ConflictError, DeviceError, JobError
from inat_job.job_status import STATUS


class Fault(Enum):
    """What went wrong on a device. After `BROKEN` and `MISUSED` nothing may use the device any more."""

    MEMORY = "memory is short, on the device or on the host"
    CONFLICT = "this machine or these settings cannot work, and a retry would end the same way"
    BROKEN = "the device or its driver failed; another machine may finish the run"
    MISUSED = "a kernel got arguments that it refuses: a bug of this job"


_MEMORY = re.compile(
    r"out of memory|allocate memory|not enough memory|STATUS_(?:\w+_)?ALLOC(?:ATION)?_FAILED|STATUS_NOT_INITIALIZED",
    re.IGNORECASE,
)
"""cuBLAS and cuDNN are not initialised where their workspace does not fit."""

NO_ENGINE = re.compile(r"(?:GET|FIND) was unable to find an engine|Unable to find a valid cuDNN algorithm")
"""cuDNN finds no engine where its workspace does not fit, and where none has the precision or is deterministic."""

_DEVICE = re.compile(
    r"CUDA (?:driver )?error|cuDNN error|CU[A-Z]+_STATUS_|Cuda failure|unhandled cuda error|Triton Error \[CUDA\]", re.I
)
"""What marks an error as one of the device, beside torch.AcceleratorError; NCCL says "Cuda failure"."""

_MISUSED = re.compile(
    r"device-side assert"
    r"|(?:CUDA error|Triton Error \[CUDA\]): (?:.*captur|too many resources"
    r"|invalid (?:argument|configuration|resource handle|device function))"
    r"|STATUS_(?:INVALID_VALUE|BAD_PARAM|NOT_SUPPORTED)"
)

_CONFLICTS = (
    (
        r"no kernel image|ARCH_MISMATCH|device kernel image is invalid|unsupported toolchain",
        "This torch has no code for {device}: use a newer GPU, or --accelerator cpu.",
    ),
    (
        r"driver version is insufficient|unsupported display driver|forward compatibility was attempted",
        "The NVIDIA driver does not fit this torch ({detail}): update it, or use --accelerator cpu.",
    ),
    (
        r"invalid device ordinal",
        "A rank asks for a GPU that it does not see: check LOCAL_RANK and CUDA_VISIBLE_DEVICES, or lower --devices.",
    ),
    (
        r"Duplicate GPU",
        "Two ranks use one GPU, which NCCL refuses ({detail}): lower --devices, or give each rank a GPU of its own.",
    ),
    (
        r"(?s)nccl.*(?:/dev/shm|shared memory segment)",
        "NCCL has too little shared memory ({detail}): give more by --shm-size 1g, or a memory-backed emptyDir.",
    ),
    (
        r"ncclInvalid(?:Usage|Argument)",
        "NCCL refuses how the ranks use their GPUs ({detail}): give each rank a GPU of its own.",
    ),
    (
        r"does not have a deterministic implementation",
        "--deterministic cannot be kept: {detail}. Leave it out, or choose another network.",
    ),
)
"""Texts for which a retry is useless, each with the message: `device` names the GPU, `detail` quotes the error."""


def fault_of(error: BaseException) -> Fault | None:
    """What an error of a library says of the device; None where it says nothing, also for the loss of another rank."""
    types, text = {kind.__name__ for kind in type(error).__mro__}, str(error)
    if isinstance(error, MemoryError) or "OutOfMemoryError" in types:
        return Fault.MEMORY
    if not isinstance(error, RuntimeError):
        return None
    if _MEMORY.search(text) or NO_ENGINE.search(text):
        return Fault.MEMORY
    if _conflict(text):
        return Fault.CONFLICT
    if "AcceleratorError" in types or _DEVICE.search(text):
        return Fault.MISUSED if _MISUSED.search(text) else Fault.BROKEN
    return None


def is_device_lost(error: BaseException) -> bool:
    """Whether nothing may use the device any more, after this error of a library or of ours."""
    return isinstance(error, DeviceError) or fault_of(error) in (Fault.BROKEN, Fault.MISUSED)


def job_error(error: BaseException, training: bool = True) -> JobError | None:
    """Our error for a library's, with what to do; None for a bug and for what is no fault of a device."""
    fault, device, detail = fault_of(error), STATUS.gpu or "the device", _detail(str(error))
    if fault is Fault.MEMORY:
        return ConflictError(_memory_advice(error, training))
    if fault is Fault.CONFLICT:
        message = _conflict(str(error))
        assert message
        return ConflictError(message.format(device=device, detail=detail))
    if fault is Fault.BROKEN:
        again = "run the same command again, on another machine if that fails too."
        return DeviceError(f"{device[0].upper()}{device[1:]} failed ({detail}): {again}")
    return None


@contextmanager
def device_errors(training: bool = True) -> Iterator[None]:
    """Raise ConflictError or DeviceError for what the libraries raise in the block; the rest passes unchanged."""
    try:
        yield
    except Exception as error:
        if ours := job_error(error, training):
            raise ours from error
        raise


def _conflict(text: str) -> str | None:
    return next((message for pattern, message in _CONFLICTS if re.search(pattern, text)), None)


def _memory_advice(error: BaseException, training: bool) -> str:
    on_host = isinstance(error, MemoryError) or re.search(r"allocate memory|not enough memory", str(error))
    resident = STATUS.resident and not on_host
    lower = ["--resident-share (0 leaves the images on the host)"] if resident else []
    lower += ["--batch-size", *(["--image-size"] if training else [])]
    advice = " or ".join([", ".join(lower[:-1]), lower[-1]] if lower[1:] else lower)
    if NO_ENGINE.search(str(error)):
        advice += " (or change --precision, or leave --deterministic out)"
    place = f" on {STATUS.gpu}" if STATUS.gpu and not on_host else ""
    return f"Out of memory{place} at these settings: lower {advice}{', or raise --accumulate' if training else ''}."


def _detail(text: str) -> str:
    """The line of an error that says most: NCCL's last error if it quotes one, else the first line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    said = next((lines[at + 1] for at, line in enumerate(lines[:-1]) if line.startswith("Last error:")), lines[0])
    said = re.sub(r"^\[.*?\] *(?:\[Rank \d+\] *)?", "", said).partition(", but you set ")[0]
    return said.split(". ")[0].rstrip(".: ")[:200]
