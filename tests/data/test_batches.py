"""A batch is a pure function of seed, epoch and step."""

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from inat_job.data import rng
from inat_job.data.augment import Views
from inat_job.data.batches import IGNORED, UNSHARDED, Batch, EvalBatches, PixelRows, Shard, TakeBatch, TrainBatches
from inat_job.data.cache_index import Cache
from tests.harness.small_caches import small_cache

ROWS, SIDE = 23, 4
MAPS = torch.arange(float(ROWS))[:, None, None].expand(ROWS, 2, 3).contiguous()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    folder = tmp_path_factory.mktemp("cache")
    pixels = np.arange(ROWS * SIDE * SIDE * 3, dtype=np.uint32).astype(np.uint8).reshape(ROWS, SIDE, SIDE, 3)
    return small_cache(folder, pixels.tobytes(), SIDE, [(row + 1, 2 * row + 1) for row in range(ROWS)])


LABELS = np.array([0] * 18 + [1] * 3)
"""Of the rows to train on, for balanced epochs."""


def train_batches(
    cache: Cache, seed: int = 0, augment: bool = True, shard: Shard = UNSHARDED, balanced: bool = False
) -> TrainBatches:
    pixels = PixelRows(cache)

    def take_for_epoch(epoch: int, rows: np.ndarray) -> TakeBatch:
        return pixels.batches(rows, Views(MAPS[rows], colours(seed, epoch)[rows] if augment else None), 3)

    return TrainBatches(take_for_epoch, np.arange(2, ROWS), 4, 5, seed, shard, LABELS if balanced else None)


def colours(seed: int, epoch: int) -> Tensor:
    return torch.from_numpy(rng.augmentation(seed, epoch, ROWS))[:, :3].contiguous()


def plain_batches(cache: Cache) -> Callable[[np.ndarray], TakeBatch]:
    return lambda rows: PixelRows(cache).batches(rows, Views(MAPS[rows]), 3)


def rows_of(batch: Batch) -> list[int]:
    """By their maps, each of which is filled with the number of its row."""
    return [int(row) for row in batch.maps[:, 1, 2]]


def same(one: Batch, two: Batch) -> bool:
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(one, two, strict=True))


def test_batch_holds_its_rows(cache: Cache) -> None:
    for batch in train_batches(cache):
        rows = rows_of(batch)
        assert torch.equal(batch.pixels, torch.from_numpy(cache.pixels[rows]).permute(0, 3, 1, 2))
        assert batch.pixels.is_contiguous(memory_format=torch.channels_last)
        assert (batch.pixels.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
        assert batch.labels.tolist() == [row % 2 for row in rows]
        assert torch.equal(batch.maps, MAPS[rows])


def test_epoch_has_each_image_at_most_once(cache: Cache) -> None:
    batches = train_batches(cache)
    for _ in range(3):
        rows = [row for batch in batches for row in rows_of(batch)]
        assert len(rows) == len(set(rows)) == 20
        assert set(rows) <= set(range(2, ROWS))


def test_balanced_epoch_has_each_class_equally_often(cache: Cache) -> None:
    batches = train_batches(cache, balanced=True)
    for _ in range(3):
        rows = [row for batch in batches for row in rows_of(batch)]
        assert len(rows) == 20
        assert 10 <= sum(row >= 20 for row in rows) + 1 <= 12
        assert set(rows) <= set(range(2, ROWS))
    shares = [iter(train_batches(cache, shard=Shard(rank, 2), balanced=True)) for rank in range(2)]
    for whole, *parts in zip(train_batches(cache, balanced=True), *shares, strict=True):
        assert rows_of(whole) == [row for part in parts for row in rows_of(part)]


@settings(max_examples=30)
@given(st.integers(0, 3), st.integers(0, 5), st.integers(0, 10), st.booleans())
def test_go_to_any_position(cache: Cache, epoch: int, position: int, seed: int, balanced: bool) -> None:
    through = train_batches(cache, seed, balanced=balanced)
    epochs = [list(through) for _ in range(epoch + 2)]
    resumed = train_batches(cache, seed, balanced=balanced)
    resumed.go_to(epoch, position)
    expected = epochs[epoch][position:] if position < 5 else epochs[epoch + 1]
    assert [same(*pair) for pair in zip(resumed, expected, strict=True)] == [True] * len(expected)


def test_position_counts_batch_in_use(cache: Cache) -> None:
    batches = train_batches(cache)
    iterator = iter(batches)
    for step in range(1, 6):
        next(iterator)
        assert batches.position() == {"epoch": 0, "position": step}


def test_epochs_and_seeds_differ_in_order(cache: Cache) -> None:
    batches = train_batches(cache)
    first, second = list(batches), list(batches)
    other = list(train_batches(cache, seed=1))
    assert [rows_of(batch) for batch in first] != [rows_of(batch) for batch in second]
    assert [rows_of(batch) for batch in first] != [rows_of(batch) for batch in other]


def test_draws_depend_on_image_and_view_only(cache: Cache) -> None:
    table = colours(0, 0)
    for batch in train_batches(cache):
        assert batch.colour is not None
        assert torch.equal(batch.colour, table[rows_of(batch)])


def test_no_colour_factors_without_augmentation(cache: Cache) -> None:
    assert all(batch.colour is None for batch in train_batches(cache, augment=False))


def test_eval_batches_have_every_row_once_in_order(cache: Cache) -> None:
    evaluated = EvalBatches(plain_batches(cache), np.arange(ROWS), 5)
    batches = list(evaluated)
    assert [row for batch in batches for row in rows_of(batch)] == list(range(ROWS))
    assert len(batches) == len(evaluated) == 5
    assert all(batch.colour is None for batch in batches)


def test_resident_pixels_give_the_same_batches(cache: Cache) -> None:
    mapped, resident = PixelRows(cache), PixelRows(cache)
    resident.place(torch.device("cpu"), resident=True)
    rows, at = np.array([9, 7, 3, 22]), slice(1, 4)
    assert resident.nbytes == ROWS * SIDE * SIDE * 3
    one, other = (pixels.batches(rows, Views(MAPS[rows], colours(0, 0)[rows]), 3)(at) for pixels in (mapped, resident))
    assert same(one, other)
    assert rows_of(one) == [7, 3, 22]


def test_abandoned_epoch_leaves_no_thread_and_errors_are_raised(cache: Cache) -> None:
    before = set(threading.enumerate())  # an earlier test may have left an epoch to the garbage collector
    batches = iter(train_batches(cache))
    next(batches)
    assert isinstance(batches, Iterator)
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("batches")]

    def fails(at: slice) -> Batch:
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(TrainBatches(lambda epoch, rows: fails, np.arange(8), 4, 2, 0))


@pytest.mark.parametrize("size", [2, 4])
def test_shards_together_are_the_batch(cache: Cache, size: int) -> None:
    shards = [train_batches(cache, shard=Shard(rank, size)) for rank in range(size)]
    for batch, *slices in zip(train_batches(cache), *shards, strict=True):
        tables = (torch.cat(each) for each in zip(*(each[:4] for each in slices), strict=True))
        joined = Batch(*tables, slices[0].erased, slices[0].size)  # type: ignore[arg-type]
        assert same(batch, joined)


@given(count=st.integers(1, ROWS), size=st.integers(1, 8), batch_size=st.integers(1, 40), full=st.booleans())
@settings(max_examples=100)
def test_every_image_is_evaluated_once_by_one_rank(
    cache: Cache, count: int, size: int, batch_size: int, full: bool
) -> None:
    take = plain_batches(cache)
    ranks = [EvalBatches(take, np.arange(count), batch_size, Shard(rank, size), full) for rank in range(size)]
    seen = [list(rank) for rank in ranks]
    assert {len(batches) for batches in seen} == {len(rank) for rank in ranks}
    shapes = {tuple(len(batch.labels) for batch in batches) for batches in seen}
    assert len(shapes) == 1, "every rank takes the same steps"
    if full:
        assert set(*shapes) == {max(1, batch_size // size)}
    counted = [
        row
        for batches in seen
        for batch in batches
        for row, label in zip(rows_of(batch), batch.labels.tolist(), strict=True)
        if label != IGNORED
    ]
    assert sorted(counted) == list(range(count))
    columns = [[row for batch in batches for row in rows_of(batch)] for batches in seen]
    interleaved = [row for step in zip(*columns, strict=True) for row in step][:count]
    assert interleaved == list(range(count)), "as the ranks' predictions are interleaved again"
