"""What texts of CUDA, cuBLAS, cuDNN and NCCL become: which of our errors, and what its sentence says to do."""

import re

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st

from inat_job.errors import DeviceError, JobError
from inat_job.host.device_faults import Fault, device_errors, fault_of, is_device_lost, job_error
from inat_job.job_status import STATUS

GPU = "GPU 3 (NVIDIA A10G, GPU-1b2c)"
NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, {what} (run with NCCL_DEBUG=WARN for "
    "details), NCCL version 2.28.9\n{code}: explained.\nLast error:\n{last}"
)


def cuda(text: str) -> Exception:
    advice = "\nCUDA kernel errors might be asynchronously reported at some other API call.\nCompile with `TORCH_USE"
    return torch.AcceleratorError(f"CUDA error: {text}{advice}")


def nccl(code: str, what: str, last: str) -> Exception:
    return dist.DistBackendError(NCCL.format(code=code, what=what, last=last))


def plain(text: str) -> Exception:
    return RuntimeError(text)


MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"),
    cuda("out of memory"),
    plain("CUDA error: out of memory"),
    plain("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    plain("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
    plain("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    plain("cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"),
    plain("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    plain("FIND was unable to find an engine to execute this computation"),
    plain("Unable to find a valid cuDNN algorithm to run convolution"),
    nccl("ncclUnhandledCudaError", "unhandled cuda error", "Cuda failure 2 'out of memory'"),
    MemoryError("Unable to allocate 2.0 GiB for an array"),
    plain("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B"),
    plain("unable to mmap 99 bytes from file <x>: Cannot allocate memory (12)"),
]
CONFLICTS = [
    (cuda("no kernel image is available for execution on the device"), f"no code for {GPU}"),
    (plain("CUDA error: CUBLAS_STATUS_ARCH_MISMATCH when calling x"), "no code for"),
    (plain("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED_ARCH_MISMATCH"), "no code for"),
    (cuda("the provided PTX was compiled with an unsupported toolchain."), "no code for"),
    (cuda("CUDA driver version is insufficient for CUDA runtime version"), "update it"),
    (cuda("invalid device ordinal"), "check LOCAL_RANK and CUDA_VISIBLE_DEVICES"),
    (
        nccl(
            "ncclInvalidUsage",
            "invalid usage",
            "Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000",
        ),
        "(Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 1000): lower --devices",
    ),
    (nccl("ncclInvalidUsage", "invalid usage", "x"), "give each rank a GPU of its own"),
    (nccl("ncclInvalidArgument", "invalid argument", "Invalid config"), "(Invalid config)"),
    (
        nccl(
            "ncclSystemError",
            "unhandled system error",
            "Error while creating shared memory segment /dev/shm/nccl-Xy (size 9637892), error: No space left on "
            "device (28)",
        ),
        "--shm-size 1g",
    ),
    (
        plain(
            "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation, but you set "
            "'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation"
        ),
        "adaptive_avg_pool2d_backward_cuda does not have a deterministic implementation. Leave it out",
    ),
]
BROKEN = [
    cuda("uncorrectable ECC error encountered"),
    cuda("unspecified launch failure"),
    cuda("the launch timed out and was terminated"),
    cuda("an illegal memory access was encountered"),
    cuda("misaligned address"),
    cuda("hardware stack error"),
    plain("Triton Error [CUDA]: an illegal memory access was encountered"),
    cuda("an illegal instruction was encountered"),
    cuda("uncorrectable NVLink error detected during the execution"),
    cuda("unknown error"),
    cuda("CUDA-capable device(s) is/are busy or unavailable"),
    cuda("system not yet initialized"),
    torch.AcceleratorError("GPU has fallen off the bus"),
    plain("CUDA driver error: device lost"),
    plain("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx(...)`"),
    plain("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    plain("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"),
    nccl("ncclUnhandledCudaError", "unhandled cuda error", "Cuda failure 214 'uncorrectable ECC error encountered'"),
    nccl("ncclUnhandledCudaError", "unhandled cuda error", ""),
]
MISUSED = [
    plain("Triton Error [CUDA]: invalid argument"),
    cuda("device-side assert triggered"),
    cuda("invalid argument"),
    cuda("invalid configuration argument"),
    cuda("operation not permitted when stream is capturing"),
    plain("CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling x"),
    plain("cuDNN error: CUDNN_STATUS_BAD_PARAM"),
]
OTHER = [
    RuntimeError("shape '[2]' is invalid for input of size 3"),
    RuntimeError("[/src/gloo/transport/tcp/pair.cc:561] Connection closed by peer [10.0.0.2]:3981"),
    dist.DistBackendError("NCCL communicator was aborted on rank 0."),
    nccl("ncclRemoteError", "remote process exited or there was a network error", "socketProgress: Connection closed"),
    nccl("ncclSystemError", "unhandled system error", "Call to connect to 10.0.0.2 failed : Connection refused"),
    dist.DistStoreError("wait timeout after 180000ms, keys: /told/3"),
    ValueError("CUDA error: out of memory"),
    KeyboardInterrupt("CUDA error: unknown error"),
    OSError(28, "No space left on device"),
]


@pytest.fixture(autouse=True)
def gpu() -> None:
    STATUS.gpu = GPU


def raised(error: BaseException) -> BaseException:
    with pytest.raises(BaseException) as caught, device_errors():  # noqa: PT011
        raise error
    return caught.value


@pytest.mark.parametrize("error", MEMORY, ids=str)
def test_lack_of_memory_says_what_to_lower(error: Exception) -> None:
    ours = raised(error)
    assert isinstance(ours, JobError)
    assert ours.exit_code == 78
    on_host = "allocate" in str(error) and "CUDA" not in str(error)
    place = "" if on_host else f" on {GPU}"
    engine = " (or change --precision, or leave --deterministic out)" if "nable to find" in str(error) else ""
    assert str(ours) == (
        f"Out of memory{place} at these settings: lower --batch-size or --image-size{engine}, or raise --accumulate."
    )
    assert not is_device_lost(error)


def test_memory_advice_names_only_what_applies() -> None:
    STATUS.resident = True
    on_gpu, on_host = cuda("out of memory"), MemoryError()
    assert "lower --resident-share (0 leaves the images on the host), --batch-size or --image-size" in str(
        job_error(on_gpu)
    )
    assert "--resident-share" not in str(job_error(on_host))
    assert str(job_error(on_gpu, training=False)).endswith(
        "lower --resident-share (0 leaves the images on the host) or --batch-size."
    )
    assert str(job_error(on_host, training=False)).endswith("lower --batch-size.")


@pytest.mark.parametrize(("error", "words"), CONFLICTS, ids=lambda value: str(value)[:60])
def test_conflict_says_what_to_change(error: Exception, words: str) -> None:
    ours = raised(error)
    assert isinstance(ours, JobError)
    assert ours.exit_code == 78
    assert words in str(ours)


@pytest.mark.parametrize("error", BROKEN, ids=lambda error: str(error)[:70])
def test_broken_device_is_named_and_may_be_tried_again_elsewhere(error: Exception) -> None:
    ours = raised(error)
    assert isinstance(ours, DeviceError)
    assert ours.exit_code == 75
    assert re.fullmatch(re.escape(GPU) + r" failed \(.+\): run the same command again, on another.*", str(ours))
    assert is_device_lost(error)
    assert is_device_lost(ours)


@pytest.mark.parametrize("error", MISUSED, ids=lambda error: str(error)[:70])
def test_misused_kernel_is_a_bug_after_which_the_device_is_lost(error: Exception) -> None:
    assert raised(error) is error
    assert fault_of(error) is Fault.MISUSED
    assert is_device_lost(error)


@pytest.mark.parametrize("error", OTHER, ids=lambda error: str(error)[:70])
def test_other_errors_pass_unchanged(error: BaseException) -> None:
    assert raised(error) is error
    assert not is_device_lost(error)


ANY_OF = [*MEMORY, *(error for error, _ in CONFLICTS), *BROKEN, *MISUSED]


@given(st.sampled_from(ANY_OF), st.text(alphabet="abc \n:.()", max_size=40))
def test_fault_depends_on_the_first_text_and_not_on_what_follows(error: Exception, after: str) -> None:
    longer = type(error)(f"{error}\n{after}")
    assert fault_of(longer) is fault_of(error)


@given(st.text(max_size=300), st.sampled_from([RuntimeError, torch.AcceleratorError, dist.DistBackendError, OSError]))
def test_any_text_has_at_most_one_sentence_in_one_line(text: str, kind: type[Exception]) -> None:
    ours = job_error(kind(text))
    assert (ours is None) == (fault_of(kind(text)) in (None, Fault.MISUSED))
    assert ours is None or (ours.exit_code in (75, 78) and str(ours).endswith(".") and "\n" not in str(ours))


def test_unknown_gpu_is_the_device() -> None:
    STATUS.gpu = None
    assert str(job_error(cuda("unknown error"))).startswith("The device failed (CUDA error: unknown error): run")
