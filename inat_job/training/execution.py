"""How the arithmetic is done: device, precision, memory format, threads, compilation.

Decided once, when a run first starts, and stored with the run, so that a resume repeats it bit for bit.
"""

import dataclasses
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from inat_job import events
from inat_job.distributed.ranks import SINGLE_RANK, Rank
from inat_job.errors import ConflictError
from inat_job.host import cpu, memory, nvidia
from inat_job.settings import TrainSettings
from inat_job.training import compiling

_LIGHTNING_PRECISION = {"bf16": "bf16-mixed", "fp16": "16-mixed", "fp32": "32-true"}


@dataclass(frozen=True)
class Execution:
    """Everything beside data, model and recipe that the last bits depend on."""

    accelerator: str
    device: str
    precision: str
    channels_last: bool
    compile: bool
    deterministic: bool
    threads: int
    torch: str
    compile_mode: str = "default"
    tf32: bool = True
    cudnn_benchmark: bool = True
    ranks: int = 1

    @property
    def lightning_precision(self) -> str:
        """The trainer's word for it."""
        return _LIGHTNING_PRECISION[self.precision]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as `decide` takes them back."""
        return dataclasses.asdict(self)

    def apply(self) -> None:
        """Set what torch keeps globally, and how memory is kept."""
        if self.accelerator == "cpu":
            events.emit("allocator", keeps_freed=memory.keep_freed_memory())
        torch.set_num_threads(self.threads)
        # Not torch.backends.fp32_precision: where that is set, what Lightning and torch.compile ask raises an error.
        torch.set_float32_matmul_precision("high" if self.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = self.tf32
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        torch.use_deterministic_algorithms(self.deterministic)


def decide(settings: TrainSettings, stored: dict[str, Any] | None, rank: Rank = SINGLE_RANK) -> Execution:
    """The decisions of the run's first start where they can be kept, else new ones and a warning of what changed.

    To compile or not is decided later, when the network is known, see `with_compile`.
    Raises ConflictError when the accelerator asked for is not here.
    """
    accelerator = _accelerator(settings.accelerator)
    if not stored:
        return _fresh(settings, accelerator, None, rank)
    known = {field.name for field in dataclasses.fields(Execution)}  # another version may have stored others
    stored = {name: value for name, value in stored.items() if name in known}
    same = stored.get("accelerator") == accelerator
    fresh = _fresh(settings, accelerator, stored.get("precision") if same else None, rank)
    first = dataclasses.replace(fresh, **stored)
    kept = dataclasses.replace(
        first, device=fresh.device, torch=fresh.torch, accelerator=accelerator, ranks=rank.world_size
    )
    if first.accelerator != fresh.accelerator:
        kept = fresh
    kept = dataclasses.replace(kept, compile=kept.compile and settings.compile is not False and _can_compile())
    changed = {name: (old, getattr(kept, name)) for name, old in stored.items() if getattr(kept, name) != old}
    if changed:
        events.warn("This resume is not bit-equal to an uninterrupted run", changed=changed)
    return kept


def with_compile(execution: Execution, settings: TrainSettings, load_of: Callable[[], compiling.Load]) -> Execution:
    """With the decision whether the network of this load is compiled, which is logged."""
    decision = compiling.decide(settings.compile, compiling.has_compiler(), execution.accelerator, load_of)
    say = events.warn if settings.compile and not decision.mode else partial(events.emit, "compile")
    say(message=f"The network is {_how(decision.mode)}: {decision.reason}.")
    return dataclasses.replace(execution, compile=bool(decision.mode), compile_mode=decision.mode or "default")


def _how(mode: str | None) -> str:
    return f"compiled (mode {mode})" if mode else "not compiled"


def _fresh(settings: TrainSettings, accelerator: str, precision: str | None, rank: Rank) -> Execution:
    """What is decided anew, unless the precision is known already."""
    if settings.precision != "auto":
        precision = settings.precision
    return Execution(
        accelerator=accelerator,
        device=_device_name(accelerator),
        precision=precision or choose(accelerator),
        channels_last=True,
        compile=False,
        deterministic=settings.deterministic,
        threads=cpu.thread_count(torch.get_num_threads(), processes=rank.local_world_size),
        ranks=rank.world_size,
        torch=torch.__version__,
        cudnn_benchmark=not settings.deterministic,
    )


def _accelerator(wanted: str) -> str:
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted in ("auto", "cuda") and not available["cuda"]:
        nvidia.require_gpu(torch.version.cuda, nvidia.find_driver())
    if wanted == "auto":
        return next(name for name, there in available.items() if there)
    if not available[wanted]:
        here = ", ".join(name for name, there in available.items() if there)
        raise ConflictError(f"--accelerator is {wanted}, which this machine does not offer: it has {here}.")
    return wanted


def _can_compile() -> bool:
    if compiling.has_compiler():
        return True
    events.warn("The network is not compiled as before: it needs a C compiler, and there is none on PATH.")
    return False


def _device_name(accelerator: str) -> str:
    return torch.cuda.get_device_name() if accelerator == "cuda" else f"{accelerator} {platform.machine()}"


_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}

_TOLERANCE = 0.02
"""Of the result's norm: bf16 keeps eight bits, so that sums are off by some thousandths; more is a fault."""


def choose(accelerator: str) -> str:
    """bf16 where the hardware multiplies it, since emulated it is slower than fp32; else fp16 on a GPU.

    Raises torch.OutOfMemoryError.
    """
    for wanted in _claimed(accelerator):
        fault = fault_of(accelerator, _DTYPES[wanted])
        if fault is None:
            return wanted
        events.warn(f"{accelerator} says that it has {wanted}, but a convolution {fault}: it is not used.")
    return "fp32"


def fault_of(accelerator: str, dtype: torch.dtype) -> str | None:
    """What is wrong with a small convolution and its gradient, against fp32 on the CPU; None if nothing is.

    Raises torch.OutOfMemoryError.
    """
    images = torch.linspace(-1, 1, 8 * 16 * 16 * 16).sin().reshape(8, 16, 16, 16)
    weight = torch.linspace(-50, 50, 16 * 16 * 9).sin().reshape(16, 16, 3, 3)
    try:
        found = _convolve(images.to(accelerator, dtype), weight.to(accelerator, dtype))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return f"fails ({str(error).splitlines()[0][:200]})"
    right = _convolve(images, weight)
    errors = [((ours - true).norm() / true.norm()).item() for ours, true in zip(found, right, strict=True)]
    return None if all(error <= _TOLERANCE for error in errors) else f"is wrong by {max(errors):.1%}"


def _convolve(images: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradient of the weights, float32 on the CPU."""
    with torch.enable_grad():
        weight = weight.clone().requires_grad_()
        output = F.conv2d(images, weight, padding=1)
        gradient = torch.autograd.grad(output, weight, output.detach())[0]
    return [each.detach().float().cpu() for each in (output, gradient)]


def _claimed(accelerator: str) -> tuple[str, ...]:
    """From the best on."""
    if accelerator == "cuda":
        return ("bf16", "fp16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp16",)
    if accelerator == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return ("bf16",)
    return ()
