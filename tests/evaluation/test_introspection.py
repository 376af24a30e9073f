"""Guided backpropagation against a second computation in numpy, Grad-CAM against its formula, for every network."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from inat_job.evaluation import introspection
from inat_job.evaluation.introspection import NoMapsError, grad_cam, guided_gradients, map_layer
from inat_job.models.backbones import build_backbone
from inat_job.models.five_block import ACTIVATIONS, FiveBlockSpec, build_five_block
from inat_job.models.preprocess import Preprocess


def five_block(activation: str = "relu", batch_norm: bool = True, pooling: str = "gap", size: int = 32) -> nn.Module:
    torch.manual_seed(1)
    spec = FiveBlockSpec((3, 4, 3, 4, 5), (3, 3, 1, 3, 3), activation, 6, pooling, batch_norm, 0.5, size, 3)
    network = build_five_block(spec).network
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    return network


def pixels(n: int, size: int = 32) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(2)) * 255


# The second computation: float64 numpy, forwards and backwards by hand, one image at a time.


def padded(x: np.ndarray, k: int) -> np.ndarray:
    return np.pad(x, ((0, 0), ((k - 1) // 2,) * 2, ((k - 1) // 2,) * 2))


def convolve(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    k, (h, wide) = w.shape[2], x.shape[1:]
    x = padded(x, k)
    return sum(
        np.einsum("oc,chw->ohw", w[:, :, i, j], x[:, i : i + h, j : j + wide])
        for i, j in itertools.product(range(k), range(k))
    )


def convolve_back(g: np.ndarray, w: np.ndarray) -> np.ndarray:
    k, (h, wide), pad = w.shape[2], g.shape[1:], (w.shape[2] - 1) // 2
    out = padded(np.zeros((w.shape[1], h, wide)), k)
    for i, j in itertools.product(range(k), range(k)):
        out[:, i : i + h, j : j + wide] += np.einsum("oc,ohw->chw", w[:, :, i, j], g)
    return out[:, pad : pad + h, pad : pad + wide]


def by_hand(network: nn.Module, image: np.ndarray, neuron: tuple[int, int, int]) -> np.ndarray:
    """The guided gradient of a neuron behind block five, with ReLU."""
    mean, std = (network.preprocess.get_buffer(name).numpy()[0].astype(float) for name in ("mean", "std"))
    x, kept = (image - mean) / std, []
    for block in network.blocks:
        w = block.conv.weight.detach().numpy().astype(float)
        z = convolve(x, w)
        c, h, wide = z.shape
        windows = z[:, : h // 2 * 2, : wide // 2 * 2].reshape(c, h // 2, 2, wide // 2, 2)
        pooled = windows.max(axis=(2, 4))
        scale = np.ones(c)
        if hasattr(block, "batch_norm"):
            norm = block.batch_norm
            of = {name: getattr(norm, name).detach().numpy().astype(float) for name in ("weight", "bias")}
            scale = of["weight"] / np.sqrt(norm.running_var.numpy() + norm.eps)
            shift = of["bias"] - norm.running_mean.numpy() * scale
        else:
            shift = block.conv.bias.detach().numpy().astype(float)  # moves all of a window alike
        inputs = pooled * scale[:, None, None] + shift[:, None, None]
        x = np.maximum(inputs, 0)
        kept.append((w, scale, z, inputs))
    g = np.zeros_like(x)
    g[neuron] = 1.0
    for w, scale, z, inputs in reversed(kept):
        g = (inputs > 0) * (g > 0) * g * scale[:, None, None]  # the rule, then the norm
        up = np.zeros_like(z)
        for c, i, j in np.ndindex(g.shape):
            window = z[c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            di, dj = np.unravel_index(window.argmax(), window.shape)
            up[c, 2 * i + di, 2 * j + dj] = g[c, i, j]
        g = convolve_back(up, w)
    return g / std


@pytest.mark.parametrize("batch_norm", [True, False])
def test_guided_backpropagation_equals_a_computation_by_hand(batch_norm: bool) -> None:
    network, images = five_block(batch_norm=batch_norm), pixels(4)
    maps = introspection.feature_maps(network, images, [network.blocks[-1]])[0]
    channels = maps.flatten(1).argmax(dim=1)  # neurons that fire
    neurons = torch.stack([channels, torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long)], dim=1)
    found = guided_gradients(network, images, network.blocks[-1], neurons).numpy()
    for number, image in enumerate(images.numpy().astype(float)):
        expected = by_hand(network, image, tuple(neurons[number].tolist()))
        assert np.abs(expected).max() > 0
        np.testing.assert_allclose(found[number], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_guided_activation_passes_positive_gradients_times_positive_derivatives(activation: str) -> None:
    module = ACTIVATIONS[activation]()
    x, upstream = torch.linspace(-4, 4, 81), torch.tensor([-1.0, 2.0]).repeat(41)[:81]
    inputs = x.clone().requires_grad_()
    introspection._guide(module, (inputs,), module(inputs)).backward(upstream)
    step = 1e-3
    slope = ((module(x.double() + step) - module(x.double() - step)) / (2 * step)).float()
    expected = upstream.clamp(min=0) * slope.clamp(min=0)
    away = x.abs() > step  # from ReLU's corner
    torch.testing.assert_close(inputs.grad[away], expected[away], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_guided_gradients_differ_from_plain_ones_for_every_activation(activation: str) -> None:
    network, images = five_block(activation), pixels(2)
    neurons = torch.tensor([[0, 0, 0], [1, 0, 0]])
    guided = guided_gradients(network, images, network.blocks[-1], neurons)
    network.eval()
    shown = images.clone().requires_grad_()
    network.blocks(network.preprocess(shown))[[0, 1], [0, 1], 0, 0].sum().backward()
    assert guided.shape == shown.shape
    assert guided.isfinite().all()
    assert not torch.allclose(guided, shown.grad)


class OneConvolution(nn.Module):
    """Maps, their global average, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.preprocess = Preprocess()
        self.conv, self.pool, self.dense = nn.Conv2d(3, 6, 3, stride=2), nn.AdaptiveAvgPool2d(1), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.dense(self.pool(self.conv(self.preprocess(images))).flatten(1))


def test_grad_cam_equals_its_formula() -> None:
    """Behind a global average and a dense layer, the mean gradient of a map is its weight over the map's size."""
    torch.manual_seed(3)
    network, images, classes = OneConvolution(), pixels(3, size=17), torch.tensor([0, 3, 1])
    maps = network.conv(network.preprocess(images)).detach()
    for found, each, label in zip(grad_cam(network, images, classes), maps, classes, strict=True):
        weights = network.dense.weight.detach()[label] / each[0].numel()
        cam = (weights[:, None, None] * each).sum(dim=0).clamp(min=0)
        expected = nn.functional.interpolate(cam[None, None], size=(17, 17), mode="bilinear")[0, 0]
        torch.testing.assert_close(found, expected / expected.max())


def test_grad_cam_of_an_image_does_not_depend_on_the_others() -> None:
    network, images = five_block(size=64), pixels(3, size=64)
    together = grad_cam(network, images, torch.tensor([0, 1, 2]))
    alone = grad_cam(network, images[1:2], torch.tensor([1]))
    torch.testing.assert_close(together[1], alone[0], atol=1e-4, rtol=1e-4)


# One of each family, small ones: how stages end, what pools, what is done in place.
BACKBONES = {
    "resnet18": 64,
    "densenet121": 64,
    "efficientnet_b0": 64,
    "convnext_tiny": 64,
    "swin_t": 64,
    "vgg11": 64,
    "googlenet": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "shufflenet_v2_x0_5": 64,
    "mnasnet0_5": 64,
    "maxvit_t": 224,
    "vit_b_16": 64,
}


@pytest.mark.soak
@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.filterwarnings("ignore")
def test_grad_cam_of_every_family(name: str) -> None:
    size = BACKBONES[name]
    torch.manual_seed(0)
    architecture = build_backbone(name, 8, size)
    network = architecture.network.eval()
    head = network.get_submodule(architecture.head[0])
    nn.init.normal_(head.weight)  # a transformer's is 0
    if head.bias is not None:
        nn.init.zeros_(head.bias)  # so that the maps alone decide the class
    for parameter in network.parameters():
        parameter.requires_grad_(False)  # as with --strategy head
    maps = grad_cam(network, pixels(2, size), network(pixels(2, size)).argmax(dim=1))  # for which something speaks
    assert maps.shape == (2, size, size)
    assert maps.isfinite().all()
    assert (maps.amax(dim=(1, 2)) <= 1 + 1e-6).all()
    assert maps.amin() >= 0
    assert maps.std() > 0, "the map is no constant"


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("resnet18", "backbone.layer4"),
        ("densenet121", "backbone.features"),
        pytest.param("vgg11", "backbone.features.19", marks=pytest.mark.soak),
        pytest.param("convnext_tiny", "backbone.features", marks=pytest.mark.soak),
        ("swin_t", "backbone.permute"),
        pytest.param("vit_b_16", "backbone.encoder.layers.encoder_layer_11.ln_1", marks=pytest.mark.soak),
    ],
)
def test_map_layer_is_the_last_stage_before_pooling(name: str, layer: str) -> None:
    network = build_backbone(name, 3, 64).network
    assert map_layer(network, pixels(1, 64)) is network.get_submodule(layer)


def test_map_layer_of_a_five_block_network_is_the_last_block() -> None:
    network = five_block(size=64)
    assert map_layer(network, pixels(1, 64)) is network.blocks


def test_network_without_maps_is_refused() -> None:
    network = nn.Sequential(nn.Conv2d(3, 2, 8, stride=8), nn.Flatten(), nn.Linear(2, 2))
    with pytest.raises(NoMapsError, match="more than one pixel"):
        map_layer(network, pixels(1, 8))


@pytest.mark.parametrize("fails", [False, True])
def test_network_is_left_as_it_was(fails: bool) -> None:
    network = build_backbone("mobilenet_v3_small", 3, 64).network
    network.train()
    network.backbone.features[:3].eval()
    before = {module: (module.training, getattr(module, "inplace", None)) for module in network.modules()}
    weights = {name: each.clone() for name, each in network.state_dict().items()}
    random = torch.get_rng_state()
    images = pixels(2, 64) if not fails else pixels(2, 64)[:, :2]
    for action in (
        lambda: grad_cam(network, images, torch.tensor([0, 1])),
        lambda: guided_gradients(network, images, network.backbone.features[3], torch.zeros(2, 3, dtype=torch.long)),
        lambda: introspection.feature_maps(network, images, [network.backbone.features[0]]),
    ):
        if fails:
            with pytest.raises(RuntimeError):
                action()
        else:
            action()
    assert {module: (module.training, getattr(module, "inplace", None)) for module in network.modules()} == before
    assert all(torch.equal(each, weights[name]) for name, each in network.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in network.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_first_filters_are_a_copy() -> None:
    network = five_block()
    filters = introspection.first_filters(network)
    assert filters.shape == (3, 3, 3, 3)
    filters.zero_()
    assert network.blocks[0].conv.weight.abs().sum() > 0
