"""What a network sees: first filters, feature maps, guided backpropagation, Grad-CAM.

Every function leaves the network as it was: hooks, train and eval modes, gradients and torch's random state. All run in
eval mode and without autocast, on the device of the network's parameters.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd
from torchvision.models import VisionTransformer

from inat_job.models.preprocess import Preprocess

ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish)
_POOLING = (_AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd)

Hook = Callable[..., Any]


class NoMapsError(Exception):
    """The network has no layer with maps of more than one pixel; the message says so."""


def first_filters(network: nn.Module) -> Tensor:
    """The filters of the first convolution that reads colours, float32 (filters, 3, k, k), on the CPU.

    Raises NoMapsError if there is none.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.in_channels == 3:
            return module.weight.detach().float().cpu().clone()
    raise NoMapsError("no convolution reads the image's three colours")


def feature_maps(network: nn.Module, pixels: Tensor, layers: Sequence[nn.Module]) -> list[Tensor]:
    """The outputs of `layers` for `pixels`, float (B, 3, S, S) in 0..255: one float32 (B, C, h, w) each, on the CPU."""
    found: dict[nn.Module, Tensor] = {}

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> None:
        found[module] = output.detach().float().cpu().clone()

    with _observed(network, dict.fromkeys(layers, keep)), torch.no_grad():
        network.forward(_on_device(network, pixels))
    return [found[layer] for layer in layers]


def guided_gradients(network: nn.Module, pixels: Tensor, layer: nn.Module, neurons: Tensor) -> Tensor:
    """Guided backpropagation of one neuron for each image: float32 (B, 3, S, S), on the CPU.

    `pixels` is float (B, 3, S, S) in 0..255, `neurons` int64 (B, 3): channel, row and column in the output of `layer`.
    A ReLU passes a gradient back where both its input and the gradient are positive (Springenberg et al., Striving for
    Simplicity, 2015). GELU, SiLU, Mish and Hardswish have no such gate, but a derivative that is slightly negative for
    some inputs. The same rule in terms of signs: the gradient passes, times the derivative, where both are positive.
    Activations are those that are modules (`ACTIVATIONS`).
    """
    found: list[Tensor] = []
    hooks: dict[nn.Module, Hook] = {each: _guide for each in network.modules() if isinstance(each, ACTIVATIONS)}
    hooks[layer] = lambda module, inputs, output: found.append(output)
    with _observed(network, hooks), torch.enable_grad():
        shown = _on_device(network, pixels).detach().requires_grad_()
        network.forward(shown)
        channel, row, column = neurons.to(shown.device).unbind(1)
        score = found[0][torch.arange(len(shown), device=shown.device), channel, row, column].sum()
        (gradient,) = torch.autograd.grad(score, shown)
    return gradient.float().cpu()


def grad_cam(network: nn.Module, pixels: Tensor, classes: Tensor, layer: nn.Module | None = None) -> Tensor:
    """Grad-CAM, the regions that raise a class's logit: float32 (B, S, S) in 0..1, on the CPU (Selvaraju et al., 2017).

    `pixels` is float (B, 3, S, S) in 0..255, `classes` int64 (B,). The maps are those of `layer`, by default the
    network's `map_layer`, which takes a forward pass to find: each is weighted by the mean gradient of the class's
    logit with respect to it, and the sum is rectified, resized to the image and divided by its maximum; a map without
    positive values is 0. Raises NoMapsError.
    """
    layer = layer or map_layer(network, pixels[:1])
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        found.append(output.detach().requires_grad_())
        return found[0].clone()  # a leaf: what follows may change it in place, and nothing before needs gradients

    with _observed(network, {layer: keep}), torch.enable_grad():
        logits = network.forward(_on_device(network, pixels))
        score = logits.gather(1, classes.to(logits.device).unsqueeze(1)).sum()
        (gradients,) = torch.autograd.grad(score, found[0])
    maps, gradients = _as_maps(found[0].detach()), _as_maps(gradients)
    weights = gradients.mean(dim=(2, 3), keepdim=True)
    cam = (weights * maps).sum(dim=1, keepdim=True).relu().float().cpu()
    cam = F.interpolate(cam, size=pixels.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    return cam / cam.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)


def map_layer(network: nn.Module, pixels: Tensor) -> nn.Module:
    """The layer that Grad-CAM explains: the last whose output is maps (B, C, h, w) of more than one pixel.

    Pooling does not count, nor does a stage that ends in it. In a vision transformer, the head reads the class token
    alone, so it is the norm before the last attention, the last place where the image's patches matter. `pixels` is
    float (1, 3, S, S). Raises NoMapsError.
    """
    for module in network.modules():
        norm = module.encoder.layers[-1].ln_1 if isinstance(module, VisionTransformer) else _norm_of_timm(module)
        if isinstance(norm, nn.Module):
            return norm
    found: list[nn.Module] = []
    pooled: list[Tensor] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, Preprocess) or not isinstance(output, Tensor):
            return
        if output.ndim != 4 or output.shape[2:].numel() == 1:
            return
        if output.shape[2] not in (output.shape[1], output.shape[3]):  # views are squares, and so are their maps
            return
        if isinstance(module, _POOLING):
            pooled.append(output)
        elif not any(output is each for each in pooled):
            found.append(module)

    hooks = {module: note for module in network.modules() if module is not network}
    with _observed(network, hooks), torch.no_grad():
        network.forward(_on_device(network, pixels))
    if not found:
        raise NoMapsError(f"no layer's maps have more than one pixel at {pixels.shape[-1]} pixels")
    return found[-1]


def _norm_of_timm(module: Any) -> Any:
    """The same norm of one of timm's vision transformers, None for other modules."""
    is_transformer = hasattr(module, "num_prefix_tokens") and hasattr(module, "blocks")
    return getattr(module.blocks[-1], "norm1", None) if is_transformer else None


def _as_maps(values: Tensor) -> Tensor:
    """Maps (B, C, h, w): also of timm's Swin, which has (B, h, w, C) with h = w, and of a transformer's tokens
    (B, n + h w, C), whose first are its class token and registers."""
    if values.ndim == 4:
        return values if values.shape[2] == values.shape[3] else values.permute(0, 3, 1, 2)
    side = math.isqrt(values.shape[1])
    return values[:, values.shape[1] - side * side :].transpose(1, 2).reshape(len(values), -1, side, side)


class _Guided(torch.autograd.Function):
    """An activation whose backward pass is guided."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, activation: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.activation = activation
        return activation(inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (inputs,) = ctx.saved_tensors
        with torch.enable_grad():
            inputs = inputs.detach().requires_grad_()
            (derivative,) = torch.autograd.grad(ctx.activation(inputs).sum(), inputs)
        return gradient.clamp(min=0) * derivative.clamp(min=0), None


def _guide(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    guided: Tensor = _Guided.apply(inputs[0], module.forward)
    return guided


@contextmanager
def _observed(network: nn.Module, hooks: dict[nn.Module, Hook]) -> Iterator[None]:
    """Eval mode, no activation in place, and forward hooks, for the block alone."""
    modes = {module: module.training for module in network.modules()}
    in_place = [module for module in network.modules() if getattr(module, "inplace", False)]
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    try:
        network.eval()
        for module in in_place:
            module.inplace = False  # type: ignore[assignment]
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module in in_place:
            module.inplace = True  # type: ignore[assignment]
        for module, training in modes.items():
            module.training = training


def _on_device(network: nn.Module, pixels: Tensor) -> Tensor:
    parameter = next(network.parameters())
    return pixels.to(parameter.device, torch.float32)
