"""How the arithmetic is done: device, precision, memory format, threads, compilation.

Decided once, when a run first starts, and stored with the run, so that a resume repeats it bit for bit.
"""

import dataclasses
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from inat_job import events
from inat_job.data import augment
from inat_job.distributed.ranks import SINGLE_RANK, Rank, gpu_index
from inat_job.errors import BadDataError, ConflictError
from inat_job.host import cpu, environment, memory, nvidia
from inat_job.host.device_faults import NO_ENGINE, Fault, fault_of
from inat_job.job_status import STATUS
from inat_job.settings import TrainSettings

_LIGHTNING_PRECISION = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}

_RECOMPILE_LIMIT = 64
"""Sets of trainable stages that a step may be compiled for; torch's own limit is eight."""

_POSSIBLE: Mapping[str, Callable[[Any], bool]] = {
    "precision": lambda value: value in _LIGHTNING_PRECISION,
    "evaluation_precision": lambda value: value in _LIGHTNING_PRECISION,
    "threads": lambda value: 0 < value < 2**16,
    "compile_mode": lambda value: value in ("default", "reduce-overhead"),
}
"""Whether a stored decision can be one, for those that not every value of their type can be."""

_OF_THIS_ATTEMPT = {"accelerator", "device", "torch", "precision", "ranks", "view_format"}
"""Decisions that a resume makes again; a stored precision is part of making them."""

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

_OF_DEVICE = (Fault.MEMORY, Fault.BROKEN, Fault.CONFLICT)
"""Faults that a convolution in any precision would meet."""

_TOLERANCE = 0.02
"""Relative error by norm. bf16 keeps eight bits, so that sums are off by a few thousandths; more is a fault."""


@dataclass(frozen=True)
class Execution:
    """Everything besides data, model and recipe that the last bits of a result depend on."""

    accelerator: str
    device: str
    precision: str
    channels_last: bool
    compile: bool
    deterministic: bool
    threads: int
    torch: str
    tf32: bool = True
    cudnn_benchmark: bool = True
    compile_mode: str = "default"
    ranks: int = 1
    view_format: int = 1
    evaluation_precision: str = "fp32"
    """Of the final evaluation and of `test`: by default what `predict` and the exports compute in."""

    @property
    def lightning_precision(self) -> str:
        """Lightning's name for the precision."""
        return _LIGHTNING_PRECISION[self.precision]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `decide` reads them back."""
        return dataclasses.asdict(self)

    def of_evaluation(self) -> "Execution":
        """The decisions of an evaluation whose digits are reported: float32 is not TF32."""
        return dataclasses.replace(self, precision=self.evaluation_precision, tf32=self.evaluation_precision != "fp32")

    def apply(self) -> None:
        """Set torch's global switches, and how the C library keeps freed memory.

        The rest is applied elsewhere: the memory format in context.py, the precision in trainer.py, compilation by
        `compile_in_place`, cuDNN's search in execution_callback.py.
        """
        if self.accelerator == "cpu":
            events.emit("allocator", keeps_freed=memory.keep_freed_memory())
        torch.set_num_threads(self.threads)
        _set_float32("high" if self.tf32 else "highest", self.tf32)
        torch.backends.cudnn.benchmark = False  # until training begins: execution_callback.py
        torch.use_deterministic_algorithms(self.deterministic)


@contextmanager
def float32_math(tf32: bool) -> Iterator[None]:
    """Let torch compute float32 with or without TF32 in the block, as it did before after it."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set_float32("high" if tf32 else "highest", tf32)
    try:
        yield
    finally:
        _set_float32(*before)


def _set_float32(matmul: str, convolution: bool) -> None:
    # Not torch.backends.fp32_precision: once it is set, the older switches of Lightning and torch.compile raise.
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolution


def decide(settings: TrainSettings, stored: dict[str, Any] | None, rank: Rank = SINGLE_RANK) -> Execution:
    """The decisions of the run's first start as far as they hold here; new ones and a warning where they do not.

    Makes the rank's GPU the current one. Raises ConflictError where the accelerator or precision asked for is missing.
    """
    accelerator = choose_accelerator(settings.accelerator)
    if accelerator == "cuda":
        _take_gpu(rank)
    if not stored:
        return _decide_new(settings, accelerator, None, rank)
    # Before view formats were stored, all views were cut in the first.
    stored = {"view_format": 1} | known_decisions(stored)
    same = stored.get("accelerator") == accelerator
    has_precision = same and "precision" in stored
    precision = keep_precision(stored["precision"], settings, accelerator, rank) if has_precision else None
    fresh = _decide_new(settings, accelerator, precision, rank)
    kept = fresh
    if same:
        kept = dataclasses.replace(fresh, **{name: stored[name] for name in stored.keys() - _OF_THIS_ATTEMPT})
    has_compiler = kept.compile and (fresh.compile if settings.compile else _has_compiler(accelerator))
    kept = dataclasses.replace(kept, compile=has_compiler)
    changed = {name: (old, getattr(kept, name)) for name, old in stored.items() if getattr(kept, name) != old}
    if changed:
        events.warn("This resume is not bit-equal to an uninterrupted run", changed=changed)
    return kept


def known_decisions(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The stored decisions that this version knows. Raises BadDataError for one that no version has stored."""
    kinds = {field.name: field.type for field in dataclasses.fields(Execution)}
    known = {name: value for name, value in stored.items() if name in kinds}
    for name, value in known.items():
        kind: Any = kinds[name]
        has_type = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
        if not has_type or not _POSSIBLE.get(name, lambda _: True)(value):
            raise BadDataError(f"The run's config.json has {value!r} as {name}: delete the run, or name another.")
    return known


def compile_in_place(network: nn.Module, mode: str = "default") -> None:
    """Compile `network` at its first training step; what the compiler cannot handle runs uncompiled, and torch logs it.

    `mode` is torch.compile's: "default" fuses operations, "reduce-overhead" also replays them as CUDA graphs. Only
    training steps are compiled: evaluation is a small part of a run, and would be compiled for each batch size.
    """
    import torch._dynamo  # takes a second
    import torch._functorch.config

    torch._dynamo.config.suppress_errors = True
    torch._functorch.config.force_non_lazy_backward_lowering = True  # or its errors end the first backward pass
    torch._dynamo.config.recompile_limit = _RECOMPILE_LIMIT
    network.compile(mode=mode)  # in place: torch.compile() would rename the weights


def keep_precision(wanted: str, settings: TrainSettings, accelerator: str, rank: Rank = SINGLE_RANK) -> str:
    """A run's precision if this device has it, else the best that it has, with a warning.

    A CPU or mps may emulate what --precision asks for: it stays, with a warning too.
    Raises ConflictError for one that --precision asks for, and on all ranks but rank 0, which decides.
    """
    asked = settings.precision != "auto"
    fault = _precision_fault(accelerator, wanted, asked)
    device = _device_name(accelerator)
    if fault is None:
        if _is_emulated(accelerator, wanted) and not rank.rank:
            events.warn(
                f"--precision is {wanted}, which {device} only emulates, often many times slower than fp32: for speed, "
                "leave it out."
            )
        return wanted
    if asked:
        raise ConflictError(f"--precision is {wanted}, but on {device} it {fault}: use another precision, or device.")
    if rank.rank:
        raise ConflictError(
            f"Rank 0 computes in {wanted}, but on {device} of rank {rank.rank} it {fault}: give all ranks the same "
            "device, or set --precision."
        )
    best = choose_precision(accelerator)
    events.warn(f"The run was computed in {wanted}, but on {device} it {fault}: it goes on in {best}.")
    return best


def _precision_fault(accelerator: str, precision: str, asked: bool) -> str | None:
    """Why a precision is not used; None if it may be. A CPU or mps may emulate what was asked for."""
    if precision == "fp32":
        return None
    if (accelerator, precision) == ("cpu", "fp16"):
        return "does not exist"  # Lightning silently takes bf16
    if _is_emulated(accelerator, precision) and not (asked and accelerator != "cuda"):
        return "is only emulated, slower than fp32"
    return convolution_fault(accelerator, _DTYPES[precision])


def _is_emulated(accelerator: str, precision: str) -> bool:
    return precision not in ("fp32", *_hardware_precisions(accelerator))


def choose_precision(accelerator: str) -> str:
    """bf16 where the hardware multiplies it, since emulation is slower than fp32; else fp16 on a GPU; else fp32.

    Raises what is a fault of the whole device.
    """
    for precision in _hardware_precisions(accelerator):
        fault = convolution_fault(accelerator, _DTYPES[precision])
        if fault is None:
            return precision
        events.warn(f"{accelerator} claims to support {precision}, but a convolution {fault}: it is not used.")
    return "fp32"


def convolution_fault(accelerator: str, dtype: torch.dtype) -> str | None:
    """What is wrong with a small convolution and its gradient, compared with fp32 on the CPU; None if nothing is.

    Raises what is a fault of the whole device.
    """
    images = torch.linspace(-1, 1, 8 * 16 * 16 * 16).sin().reshape(8, 16, 16, 16)
    weight = torch.linspace(-50, 50, 16 * 16 * 9).sin().reshape(16, 16, 3, 3)
    try:
        found = _convolve(images.to(accelerator, dtype), weight.to(accelerator, dtype))
    except RuntimeError as error:
        if fault_of(error) in _OF_DEVICE and not NO_ENGINE.search(str(error)):
            raise
        return f"fails ({str(error).splitlines()[0][:200]})"
    right = _convolve(images, weight)
    errors = [((ours - true).norm() / true.norm()).item() for ours, true in zip(found, right, strict=True)]
    return None if all(error <= _TOLERANCE for error in errors) else f"is wrong by {max(errors):.1%}"


def _decide_new(settings: TrainSettings, accelerator: str, precision: str | None, rank: Rank) -> Execution:
    """The decisions of a first start; `precision` is kept where it is known already."""
    if settings.precision != "auto" and precision is None:
        precision = keep_precision(settings.precision, settings, accelerator, rank)
    return Execution(
        accelerator=accelerator,
        device=_device_name(accelerator),
        precision=precision or choose_precision(accelerator),
        channels_last=True,
        compile=bool(settings.compile) and _has_compiler(accelerator),
        deterministic=settings.deterministic,
        threads=cpu.thread_count(torch.get_num_threads(), processes=rank.local_world_size),
        ranks=rank.world_size,
        torch=torch.__version__,
        cudnn_benchmark=not settings.deterministic,
        view_format=augment.VIEW_FORMAT,
    )


def choose_accelerator(wanted: str) -> str:
    """The device that `--accelerator` means. Raises ConflictError for one that this machine does not have."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted in ("auto", "cuda") and not available["cuda"]:
        nvidia.require_gpu(torch.version.cuda, nvidia.find_driver())
    if wanted == "auto":
        return next(name for name, present in available.items() if present)
    if not available[wanted]:
        names = ", ".join(name for name, present in available.items() if present)
        raise ConflictError(f"--accelerator is {wanted}, which this machine does not have: it has {names}.")
    return wanted


def _take_gpu(rank: Rank) -> None:
    """Make the rank's GPU the current device, and note its name. Raises ConflictError if torch has no code for it."""
    index = gpu_index(rank, torch.cuda.device_count())
    torch.cuda.set_device(index)
    gpu = torch.cuda.get_device_properties(index)
    STATUS.gpu = f"GPU {index} ({gpu.name}, GPU-{gpu.uuid})"
    found = nvidia.Gpu(gpu.name, (gpu.major, gpu.minor))
    if problem := nvidia.architecture_problem([found], torch.cuda.get_arch_list()):
        raise ConflictError(problem)


def _has_compiler(accelerator: str) -> bool:
    """Whether everything is here that torch.compile needs at run time; a warning where it is not."""
    missing = environment.missing_for_compilation(accelerator == "cuda")
    if missing:
        events.warn(f"The network is not compiled: --compile also needs {' and '.join(missing)}.")
    return not missing


def _device_name(accelerator: str) -> str:
    return torch.cuda.get_device_name() if accelerator == "cuda" else f"{accelerator} {platform.machine()}"


def _convolve(images: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradient of the weights, float32 on the CPU."""
    with torch.enable_grad():
        weight = weight.clone().requires_grad_()
        output = F.conv2d(images, weight, padding=1)
        gradient = torch.autograd.grad(output, weight, output.detach())[0]
    return [each.detach().float().cpu() for each in (output, gradient)]


def _hardware_precisions(accelerator: str) -> tuple[str, ...]:
    """The half precisions that the hardware claims to support, best first."""
    if accelerator == "cuda":
        return ("bf16", "fp16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp16",)
    if accelerator == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return ("bf16",)
    return ()
