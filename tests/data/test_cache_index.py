"""The index of the decoded cache: saved, loaded and checked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from inat_job.data import pixel_file
from inat_job.data.cache_index import INDEX, PIXELS, Cache, CacheIndex, load, load_trusted
from inat_job.errors import Preempted

SIDE = 8


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    """A cache of two training images and a test image that equals one of them."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 3), dtype=np.uint8)
    with pixel_file.create(tmp_path / PIXELS, 3, SIDE) as file:
        for row, square in enumerate(pixels):
            file.write(row, square)
        digest = pixel_file.digest(file.hash(row) for row in range(3))
    index = CacheIndex(
        source="x.zip",
        digest="0" * 64,
        side=SIDE,
        classes=("A", "B"),
        ids=("test/A/1.jpg", "train/A/1.jpg", "train/B/1.jpg"),
        labels=(0, 0, 1),
        splits=("test", "train", "train"),
        sizes=((8, 8),) * 3,
        hashes=("a", "a", "b"),
        rejected=({"id": "train/B/2.jpg", "reason": "empty file"},),
        pixels_sha256=digest,
    )
    index.save(tmp_path)
    return Cache(tmp_path, index)


def test_cache_round_trip(cache: Cache) -> None:
    for loaded in (load(cache.folder), load_trusted(cache.folder)):
        assert loaded == cache
        assert loaded.pixels.shape == (3, SIDE, SIDE, 3)


@pytest.mark.parametrize("name", [INDEX, PIXELS])
def test_damaged_file_is_not_loaded(cache: Cache, name: str) -> None:
    file = cache.folder / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert load(cache.folder) is None
    file.unlink()
    assert load(cache.folder) is None


def test_stop_during_load(cache: Cache) -> None:
    with pytest.raises(Preempted, match="checking the prepared images"):
        load(cache.folder, lambda: True)


def test_rows_and_in_both_splits(cache: Cache) -> None:
    assert cache.index.rows("train").tolist() == [1, 2]
    assert cache.index.in_both_splits() == ("test/A/1.jpg",)


def test_test_image_that_is_a_validation_image_counts_as_seen(cache: Cache) -> None:
    index = replace(cache.index, splits=("test", "val", "train"))
    assert index.in_both_splits() == ("test/A/1.jpg",)
    assert index.in_both_splits("val") == ()


def test_cache_of_a_trial_says_nothing_of_test_images(cache: Cache) -> None:
    hidden = replace(cache, index=replace(cache.index, blank=("test/A/1.jpg", "train/B/1.jpg"))).without_test()
    assert hidden.index.hidden_rows().tolist() == [0]
    assert hidden.index.rows("test").tolist() == []
    assert hidden.index.rows("train").tolist() == [1, 2]
    assert hidden.index.ids == ("", "train/A/1.jpg", "train/B/1.jpg")
    assert (hidden.index.labels, hidden.index.hashes) == ((-1, 0, 1), ("", "a", "b"))
    assert (hidden.index.blank, hidden.index.in_both_splits()) == (("train/B/1.jpg",), ())
    with pytest.raises(LookupError, match="may not read test images"):
        _ = hidden.pixels
