"""The parameters and multiply-adds of a network, measured without changing it."""

import torch
from torch import nn

from inat_job.models.backbones import build_backbone
from inat_job.models.flops import NetworkSize, network_size


def test_macs_count_convolutions_and_dense_layers_only():
    layers = nn.Sequential(
        nn.Upsample(scale_factor=1.0), nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 5)
    )
    network = nn.Sequential(_Float(), *layers)
    assert network_size(network, 4) == NetworkSize(
        parameters=112 + 8 + 325, trainable_parameters=445, macs=16 * 4 * 27 + 64 * 5, outputs=5
    )


def test_network_size_does_not_change_the_network():
    architecture = build_backbone("resnet18", 5, 32)
    network = architecture.network.train()
    network.get_submodule("backbone.layer1").eval()
    network.get_parameter("backbone.conv1.weight").requires_grad_(False)
    before = {name: each.clone() for name, each in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    size = network_size(network, 32)
    assert size.parameters - size.trainable_parameters == 3 * 64 * 7 * 7
    assert modes == [module.training for module in network.modules()]
    assert all(torch.equal(each, before[name]) for name, each in network.state_dict().items())
    assert not network.get_parameter("backbone.conv1.weight").requires_grad
    assert network.get_parameter("backbone.fc.weight").requires_grad


class _Float(nn.Module):
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.float()
