"""How many ranks a machine starts, by the settings and the platform."""

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
    made = RECIPES["a"]()
    return replace(made, train=replace(made.train, **train))


@pytest.mark.parametrize(
    ("seen", "accelerator", "started"), [(0, "auto", 1), (4, "auto", 4), (4, "cpu", 1), (1, "cuda", 1)]
)
def test_all_gpus_are_used_unless_another_device_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, seen: int, accelerator: str, started: int
) -> None:
    monkeypatch.setattr(nvidia, "count", lambda: seen)
    assert len(world.local_ranks(settings(accelerator=accelerator), NO_PLATFORM)) == started


def test_a_machine_of_several_starts_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "count", lambda: 2)
    found = world.local_ranks(settings(), Platform("Kubernetes", rank=1, world=4, master="host"))
    assert [(rank.rank, rank.world_size, rank.master_address) for rank in found] == [(2, 8, "host"), (3, 8, "host")]


@pytest.mark.parametrize(
    ("train", "place", "words"),
    [
        ({"num_nodes": 2}, NO_PLATFORM, "set NODE_RANK"),
        ({"num_nodes": 2}, Platform("AWS Batch", world=3, master="host"), "AWS Batch says 3"),
        ({"num_nodes": 2}, replace(NO_PLATFORM, rank=2, master="host"), "number 2"),
        ({"devices": 4}, NO_PLATFORM, "--devices is 4 and this machine has 2"),
        ({"devices": 2, "batch_size": 64, "accumulate": 64}, NO_PLATFORM, "make it a multiple of 128"),
    ],
)
def test_what_does_not_fit_is_refused(
    monkeypatch: pytest.MonkeyPatch, train: dict[str, Any], place: Platform, words: str
) -> None:
    monkeypatch.setattr(nvidia, "count", lambda: 2)
    with pytest.raises(ConflictError, match=words):
        world.local_ranks(settings(**train), place)
