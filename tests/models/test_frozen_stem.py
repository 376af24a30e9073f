"""A network cut after its frozen stem computes exactly what the whole network does."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inat_job.models.backbones import build_backbone
from inat_job.models.five_block import FiveBlockSpec, build_five_block
from inat_job.models.frozen_stem import CannotCutError, cut_stem, stem_digest
from inat_job.models.strategies import Architecture, apply_strategy, epochs_with_initial_stages, trainable_stages

SPEC = FiveBlockSpec((4,) * 5, (3,) * 5, "relu", 64, "gap", True, 0.5, 32, 3)
PIXELS = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


SLOW = [pytest.param(name, marks=pytest.mark.soak) for name in ("densenet121", "googlenet", "swin_t", "vgg11")]


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_b0", *SLOW])
def test_stem_and_tail_compute_what_the_network_does(name: str) -> None:
    architecture = build_backbone(name, 3, 64)
    for n_trainable in range(len(architecture.stages)):
        apply_strategy(architecture, n_trainable)
        cut = cut_stem(architecture, n_trainable)
        architecture.network.eval()
        with torch.no_grad():
            assert torch.equal(cut.tail(cut.stem(PIXELS)), architecture.network(PIXELS)), cut.cut_at
        assert not any(each.requires_grad for each in cut.stem.parameters())
        trained = {id(each) for each in architecture.network.parameters() if each.requires_grad}
        assert trained <= {id(each) for each in cut.tail.parameters()}


@given(st.integers(0, 5))
@settings(max_examples=6)
def test_stem_has_no_dropout_and_no_moving_statistics(n_trainable: int) -> None:
    architecture = build_five_block(SPEC)
    apply_strategy(architecture, n_trainable)
    cut = cut_stem(architecture, n_trainable)
    pixels = PIXELS[:, :, :32, :32]
    assert torch.equal(cut.stem(pixels), cut.stem(pixels))
    features = cut.stem(pixels).detach()
    torch.manual_seed(0)
    one = cut.tail(features)
    torch.manual_seed(1)
    assert not torch.equal(one, cut.tail(features))  # because of the dropout before the output layer


def test_stem_digest_depends_on_weights_and_statistics_of_the_stem() -> None:
    torch.manual_seed(0)
    one = build_backbone("resnet18", 3, 64)
    before = stem_digest(cut_stem(one, 0).stem)
    with torch.no_grad():
        one.network.get_parameter("backbone.fc.weight").add_(1)
    assert stem_digest(cut_stem(one, 0).stem) == before
    one.network.get_buffer("backbone.bn1.running_mean").add_(1)
    assert stem_digest(cut_stem(one, 0).stem) != before
    assert stem_digest(cut_stem(one, 1).stem) != before


def test_untraceable_network_cannot_be_cut() -> None:
    class DataDependent(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels if pixels.sum() > 0 else -pixels

    with pytest.raises(CannotCutError, match="cannot be listed"):
        cut_stem(Architecture("data dependent", DataDependent(), stages=((),), head=("head",)), 0)


def test_epochs_with_initial_stages_end_when_a_stage_is_unfrozen() -> None:
    cut = build_five_block(SPEC)
    by_strategy = {
        name: epochs_with_initial_stages(dataclasses.replace(cut, strategy=name), 20)
        for name in ("head", "last-k", "gradual")
    }
    assert by_strategy == {"head": 20, "last-k": 20, "gradual": 2}


@given(st.integers(1, 200), st.integers(0, 7))
def test_gradual_keeps_the_initial_stages_until_the_first_is_unfrozen(epochs: int, n_stages: int) -> None:
    cut = Architecture("gradual", torch.nn.Identity(), stages=((),) * n_stages, head=(), strategy="gradual")
    trained = [trainable_stages(cut, epoch, epochs) for epoch in range(epochs)]
    assert epochs_with_initial_stages(cut, epochs) == trained.count(trained[0])


def test_epochs_with_initial_stages_take_no_time_to_count() -> None:
    cut = dataclasses.replace(build_five_block(SPEC), strategy="gradual")
    assert epochs_with_initial_stages(cut, 10**18) == 10**17
