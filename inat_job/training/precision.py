"""Which arithmetic a device does well: what it says it can, and then what a convolution on it shows."""

import math

import torch
from torch.nn import functional as F

from inat_job import events

_TOLERANCE = 0.02
"""Of the result's norm: bf16 keeps eight bits, so that sums are off by some thousandths; more is a fault."""


def choose(accelerator: str) -> str:
    """bf16 where the hardware multiplies it, since emulated it is slower than fp32; else fp16 on a GPU."""
    wanted = _claimed(accelerator)
    if wanted == "fp32":
        return wanted
    error = error_of(accelerator, torch.bfloat16 if wanted == "bf16" else torch.float16)
    if error <= _TOLERANCE:
        return wanted
    events.warn(f"{accelerator} says that it has {wanted} and gets it wrong by {error:.1%}, so fp32 is used.")
    return "fp32"


def error_of(accelerator: str, dtype: torch.dtype) -> float:
    """Relative error of a small convolution and its gradient against fp32 on the CPU; infinite if it fails."""
    pictures = torch.linspace(-1, 1, 8 * 16 * 16 * 16).sin().reshape(8, 16, 16, 16)
    weight = torch.linspace(-50, 50, 16 * 16 * 9).sin().reshape(16, 16, 3, 3)
    try:
        found = _convolve(pictures.to(accelerator, dtype), weight.to(accelerator, dtype))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return math.inf
    errors = [
        ((ours - right).norm() / right.norm()).item()
        for ours, right in zip(found, _convolve(pictures, weight), strict=True)
    ]
    return max(errors) if all(map(math.isfinite, errors)) else math.inf


def _convolve(pictures: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor]:
    """Output and gradient of the weights, float32 on the CPU."""
    with torch.enable_grad():
        weight = weight.clone().requires_grad_()
        output = F.conv2d(pictures, weight, padding=1)
        gradient = torch.autograd.grad(output, weight, output.detach())[0]
    return [each.detach().float().cpu() for each in (output, gradient)]


def _claimed(accelerator: str) -> str:
    if accelerator == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if accelerator == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return "fp32"
