"""Which arithmetic a device does well: what it says it can, and then what a convolution on it shows."""

import torch
from torch.nn import functional as F

from inat_job import events

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
    pictures = torch.linspace(-1, 1, 8 * 16 * 16 * 16).sin().reshape(8, 16, 16, 16)
    weight = torch.linspace(-50, 50, 16 * 16 * 9).sin().reshape(16, 16, 3, 3)
    try:
        found = _convolve(pictures.to(accelerator, dtype), weight.to(accelerator, dtype))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return f"fails ({str(error).splitlines()[0][:200]})"
    right = _convolve(pictures, weight)
    errors = [((ours - true).norm() / true.norm()).item() for ours, true in zip(found, right, strict=True)]
    return None if all(error <= _TOLERANCE for error in errors) else f"is wrong by {max(errors):.1%}"


def _convolve(pictures: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradient of the weights, float32 on the CPU."""
    with torch.enable_grad():
        weight = weight.clone().requires_grad_()
        output = F.conv2d(pictures, weight, padding=1)
        gradient = torch.autograd.grad(output, weight, output.detach())[0]
    return [each.detach().float().cpu() for each in (output, gradient)]


def _claimed(accelerator: str) -> tuple[str, ...]:
    """From the best on."""
    if accelerator == "cuda":
        return ("bf16", "fp16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp16",)
    if accelerator == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return ("bf16",)
    return ()
