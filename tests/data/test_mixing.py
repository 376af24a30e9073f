"""Mixed batches: pairs of neighbours, the shares of pixels and labels, and independence from the number of ranks."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from inat_job.data.batches import UNSHARDED, Batch, Shard
from inat_job.data.cache_index import Cache
from inat_job.data.mixing import Mix, draw_mix, mix_views, of_neighbours
from inat_job.data.module import ImageDataModule
from inat_job.models.schedule import Schedule
from inat_job.settings import DataSettings, TrainSettings
from tests.harness.small_caches import small_cache

ROWS, SIDE = 40, 8


def constant_views(count: int, size: int) -> torch.Tensor:
    """View i has the value i everywhere."""
    views = torch.arange(float(count)).view(-1, 1, 1, 1).repeat(1, 3, size, size)
    return views.contiguous(memory_format=torch.channels_last)


@given(st.integers(1, 9), st.integers(4, 40), st.booleans(), *[st.floats(0, 1)] * 3)
def test_pixels_are_mixed_in_the_share_of_the_labels(
    count: int, size: int, is_cutmix: bool, share: float, x: float, y: float
) -> None:
    mix = Mix(is_cutmix, share, x, y)
    own = mix.own_share(size)
    mixed = mix_views(constant_views(count, size), mix)
    other = of_neighbours(torch.arange(count))
    assert other.tolist() == [at ^ 1 if at ^ 1 < count else at for at in range(count)]
    expected = own * torch.arange(count) + (1 - own) * other
    assert torch.allclose(mixed.mean(dim=(1, 2, 3)), expected, atol=1e-4)
    assert mixed.is_contiguous(memory_format=torch.channels_last)
    if is_cutmix:
        assert own >= share - 3 / size
        assert set(mixed.unique().tolist()) <= set(range(count)), "each pixel is of one image"


@given(st.integers(0, 2**31 - 1), st.integers(0, 10**6))
def test_each_batch_draws_one_kind(seed: int, number: int) -> None:
    assert draw_mix(seed, number, 0.2, 1.0) == draw_mix(seed, number, 0.2, 1.0)
    assert not draw_mix(seed, number, 0.2, 0.0).is_cutmix
    assert draw_mix(seed, number, 0.0, 1.0).is_cutmix
    kinds = [draw_mix(seed, number + later, 0.2, 1.0).is_cutmix for later in range(40)]
    assert 0 < sum(kinds) < 40


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("cache")
    pixels = np.random.default_rng(0).bytes(ROWS * SIDE * SIDE * 3)
    return small_cache(folder, pixels, SIDE, ((40, 30),) * ROWS)


def epoch(cache: Cache, train: TrainSettings, number: int, shard: Shard = UNSHARDED) -> list[Batch]:
    images = ImageDataModule(cache, train, DataSettings(image_size=32, test_size=40), shard)
    images.train_batches.go_to(number, 0)
    return list(images.train_batches)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("ranks", [2, 4])
def test_mixed_batch_does_not_depend_on_the_number_of_ranks(cache: Cache, ranks: int, accumulate: int) -> None:
    recipe = TrainSettings(batch_size=16, accumulate=accumulate, epochs=5, cutmix=1.0, mixup=0.2)
    shards = [epoch(cache, recipe, 1, Shard(rank, ranks)) for rank in range(ranks)]
    for batch, *parts in zip(epoch(cache, recipe, 1), *shards, strict=True):
        assert batch.mix is not None
        assert {part.mix for part in parts} == {batch.mix}
        assert torch.equal(torch.cat([of_neighbours(part.labels) for part in parts]), of_neighbours(batch.labels))
        pixels = torch.cat([mix_views(part.pixels.float(), batch.mix) for part in parts])
        assert torch.equal(pixels, mix_views(batch.pixels.float(), batch.mix))


def test_batches_differ_in_their_mixing_and_the_last_epochs_are_not_mixed(cache: Cache) -> None:
    recipe = TrainSettings(batch_size=8, epochs=5, cutmix=1.0, mix_until=0.6)
    drawn = [batch.mix for number in range(3) for batch in epoch(cache, recipe, number)]
    assert len(set(drawn)) == len(drawn) == 12
    assert None not in drawn
    assert {batch.mix for number in (3, 4) for batch in epoch(cache, recipe, number)} == {None}
    plain = TrainSettings(batch_size=8, epochs=5, cutmix=1.0, augment=False)
    assert {batch.mix for batch in epoch(cache, plain, 0)} == {None}


def test_share_of_the_epochs_that_mix_is_not_rounded_up(cache: Cache) -> None:
    """0.28 * 25 is 7.000000000000001 in floating point."""
    recipe = TrainSettings(batch_size=8, epochs=25, cutmix=1.0, mix_until=0.28)
    assert [epoch(cache, recipe, number)[0].mix is None for number in (6, 7)] == [False, True]


def test_views_have_the_size_of_their_purpose_and_epoch(cache: Cache) -> None:
    images = ImageDataModule(
        cache, TrainSettings(batch_size=8, epochs=3, start_size=32), DataSettings(image_size=64, test_size=80)
    )
    sizes = [{batch.size for batch in images.train_batches} for _ in range(3)]
    assert sizes == [{32}, {48}, {64}]
    assert {batch.size for batch in images.val_dataloader()} == {80}
    assert {batch.size for batch in images.batches(images.val_rows, mirror=True)} == {80}
    assert {batch.size for batch in images.unsharded_batches(images.val_rows, 0)} == {64}
    assert {batch.size for batch in images.unsharded_batches(images.val_rows, None)} == {80}


def test_mixing_and_small_views_end_in_time_where_a_run_is_shortened(cache: Cache) -> None:
    recipe = TrainSettings(batch_size=8, epochs=10, cutmix=1.0, mix_until=0.5, start_size=32)
    images = ImageDataModule(cache, recipe, DataSettings(image_size=64))
    steps = images.steps_per_epoch
    within_an_epoch = Schedule(10 * steps, 0.1).ending_at(4 * steps, decided=steps + 1)
    images.end_with(within_an_epoch.end_at)
    epochs = [list(images.train_batches) for _ in range(4)]
    assert [{batch.mix is not None for batch in epoch} for epoch in epochs] == [{True}, {True}, {False}, {False}]
    assert [{batch.size for batch in epoch} for epoch in epochs] == [{32}, {32}, {64}, {64}]
    images.train_batches.go_to(1, 2)
    assert [batch.mix for batch in images.train_batches] == [batch.mix for batch in epochs[1][2:]]
