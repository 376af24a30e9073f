"""world.py: which ranks a machine starts, by the settings and the platform."""

from dataclasses import replace
from typing import Any

import pytest

from inat_job.distributed import world
from inat_job.errors import ConflictError
from inat_job.host import nvidia
from inat_job.platforms.platform import NO_PLATFORM, Platform
from inat_job.recipes import RECIPES
from inat_job.settings import Settings


def settings(**train: Any) -> Settings:
    defaults = RECIPES["a"]()
    return replace(defaults, train=replace(defaults.train, **train))


@pytest.mark.parametrize(
    ("gpus", "accelerator", "started"), [(0, "auto", 1), (4, "auto", 4), (4, "cpu", 1), (1, "cuda", 1)]
)
def test_one_rank_for_each_gpu_by_default(
    monkeypatch: pytest.MonkeyPatch, gpus: int, accelerator: str, started: int
) -> None:
    monkeypatch.setattr(nvidia, "gpu_count", lambda: gpus)
    assert len(world.local_ranks(settings(accelerator=accelerator), NO_PLATFORM)) == started


def test_ranks_of_one_of_several_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "gpu_count", lambda: 2)
    platform = Platform("Kubernetes", node_rank=1, num_nodes=4, master_address="host")
    found = world.local_ranks(settings(), platform)
    assert [(rank.rank, rank.world_size, rank.master_address) for rank in found] == [(2, 8, "host"), (3, 8, "host")]


@pytest.mark.parametrize(
    ("train", "platform", "message"),
    [
        ({"num_nodes": 2}, NO_PLATFORM, "set NODE_RANK"),
        ({"num_nodes": 2}, Platform("AWS Batch", num_nodes=3, master_address="host"), "AWS Batch says 3"),
        ({"num_nodes": 2}, replace(NO_PLATFORM, node_rank=2, master_address="host"), "number 2"),
        ({"devices": 4}, NO_PLATFORM, "--devices is 4, but this machine has 2"),
        ({"devices": 2, "batch_size": 64, "accumulate": 64}, NO_PLATFORM, "use a multiple of 128"),
        (
            {"devices": 2, "batch_size": 6, "mixup": 0.2},
            NO_PLATFORM,
            "2 devices gets 3, .*: use a multiple of 4",
        ),
    ],
)
def test_contradicting_settings_are_refused(
    monkeypatch: pytest.MonkeyPatch, train: dict[str, Any], platform: Platform, message: str
) -> None:
    monkeypatch.setattr(nvidia, "gpu_count", lambda: 2)
    with pytest.raises(ConflictError, match=message):
        world.local_ranks(settings(**train), platform)
