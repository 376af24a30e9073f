"""Part A's network: shapes, size, initialisation, and values that are refused."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from inat_job.errors import UsageError
from inat_job.models.five_block import ACTIVATIONS, FiveBlockSpec, block_filters, build_five_block
from inat_job.models.flops import network_size

SMALL = FiveBlockSpec(
    filters=(4, 6, 8, 8, 10),
    kernel_sizes=(3, 5, 2, 4, 1),
    activation="relu",
    dense=12,
    pooling="flatten",
    batch_norm=True,
    dropout=0.5,
    image_size=40,
    num_classes=7,
)


def test_size_of_the_textbook_network_is_as_computed_by_hand():
    spec = FiveBlockSpec((32,) * 5, (3,) * 5, "relu", 128, "flatten", False, 0.0, 224, 10)
    size = network_size(build_five_block(spec).network, 224)
    # First convolution 896, four of 9,248, dense 32*7*7*128 + 128, output 1,290; 9 * C_in * 32 multiply-adds a pixel.
    assert size.parameters == size.trainable_parameters == 240_010
    assert size.macs == 197_092_608


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pooling", ["flatten", "gap"])
@pytest.mark.parametrize("batch_norm", [True, False])
def test_every_variant_returns_logits_and_gradients(activation: str, pooling: str, batch_norm: bool):
    spec = dataclasses.replace(SMALL, activation=activation, pooling=pooling, batch_norm=batch_norm)
    network = build_five_block(spec).network
    logits = network(torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8))
    logits.square().sum().backward()
    assert logits.shape == (2, 7)
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("kernel", [1, 2, 3, 4, 7, 8])
def test_each_block_halves_the_side_for_any_kernel_size(kernel: int):
    network = build_five_block(dataclasses.replace(SMALL, kernel_sizes=(kernel,) * 5, image_size=64)).network
    maps, sides = torch.zeros(1, 3, 64, 64), []
    for block in network.get_submodule("blocks").children():
        maps = block(maps)
        sides.append(tuple(maps.shape[-2:]))
    assert sides == [(32, 32), (16, 16), (8, 8), (4, 4), (2, 2)]


def test_order_of_layers_in_a_block():
    block = build_five_block(SMALL).network.get_submodule("blocks.0")
    assert [name for name, _ in block.named_children()] == ["conv", "pool", "batch_norm", "activation"]


def test_image_too_small_for_five_blocks_is_refused():
    with pytest.raises(UsageError, match="--image-size is 31"):
        dataclasses.replace(SMALL, image_size=31)


@pytest.mark.parametrize(
    ("field", "value", "flag"),
    [
        ("filters", (1, 2, 3), "--filters"),
        ("kernel_sizes", (3, 3, 3, 3, 0), "--kernel-sizes"),
        ("activation", "tanh", "--activation"),
        ("pooling", "max", "--pooling"),
    ],
)
def test_invalid_value_names_its_flag(field: str, value: object, flag: str):
    with pytest.raises(UsageError, match=flag):
        dataclasses.replace(SMALL, **{field: value})


def test_seed_decides_the_weights():
    def weights() -> list[torch.Tensor]:
        torch.manual_seed(3)
        return list(build_five_block(SMALL).network.parameters())

    assert all(torch.equal(*pair) for pair in zip(weights(), weights(), strict=True))


def test_initialisation_keeps_the_scale_of_activations():
    torch.manual_seed(0)
    spec = dataclasses.replace(SMALL, filters=(64,) * 5, kernel_sizes=(3,) * 5, batch_norm=False, image_size=64)
    block = build_five_block(spec).network.get_submodule("blocks.1.conv")
    # He initialisation: the activation before it halves the second moment, and the weights restore it.
    assert block(torch.randn(4, 64, 32, 32).relu()).var().item() == pytest.approx(1.0, rel=0.2)


@given(st.integers(1, 4096), st.sampled_from(["same", "double", "half"]))
def test_block_filters_follow_their_organisation(base: int, organisation: str):
    filters = block_filters(base, organisation)
    assert len(filters) == 5
    assert filters[0] == base
    factor = {"same": 1, "double": 2, "half": 0.5}[organisation]
    assert all(after == max(1, int(before * factor)) for before, after in pairwise(filters))


@pytest.mark.parametrize("batch_norm", [True, False])
def test_initial_loss_is_that_of_a_random_guess(batch_norm: bool):
    torch.manual_seed(0)
    network = build_five_block(dataclasses.replace(SMALL, filters=(32,) * 5, batch_norm=batch_norm)).network
    labels = torch.arange(28) % 7
    loss = cross_entropy(network(torch.rand(28, 3, 40, 40) * 255), labels)
    assert loss.item() == pytest.approx(math.log(7), abs=0.1)


def test_unknown_filter_organisation_is_refused():
    with pytest.raises(UsageError, match="--filter-organisation"):
        block_filters(32, "triple")
