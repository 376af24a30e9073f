"""The data module's splits, and what it requires of the images."""

import numpy as np
import pytest
import torch

from inat_job.data.augment import Augmentation, Views, training_views
from inat_job.data.cache_index import PIXELS, Cache, CacheIndex
from inat_job.data.module import ImageDataModule
from inat_job.errors import BadDataError, ConflictError
from inat_job.settings import DataSettings, TrainSettings


def images(tmp_path, hashes: tuple[str, ...], batch_size: int = 2) -> ImageDataModule:
    """Training images with these contents, alternating between two classes; the test set is as large."""
    each = tuple(range(len(hashes)))
    index = CacheIndex(
        source="here.zip",
        digest="0" * 64,
        side=8,
        classes=("A", "B"),
        ids=tuple(f"{split}/{at}" for split in ("test", "train") for at in each),
        labels=tuple(at % 2 for at in each) * 2,
        splits=("test",) * len(hashes) + ("train",) * len(hashes),
        sizes=((8, 8),) * len(hashes) * 2,
        hashes=tuple(f"test {content}" for content in hashes) + hashes,
        rejected=(),
        pixels_sha256="",
    )
    return ImageDataModule(Cache(tmp_path, index), TrainSettings(batch_size=batch_size), DataSettings())


def test_each_class_has_a_validation_image(tmp_path) -> None:
    found = images(tmp_path, ("a", "b", "c", "d"))
    assert [len(rows) for rows in (found.train_rows, found.val_rows, found.test_rows)] == [2, 2, 4]


def test_no_validation_image_is_bad_data(tmp_path) -> None:
    with pytest.raises(BadDataError, match=r"here.zip leaves no image for validation.*: add some."):
        images(tmp_path, ("a", "b", "a", "b"))


def test_batch_size_beyond_training_set_is_conflict(tmp_path) -> None:
    with pytest.raises(ConflictError, match=r"--batch-size is 3, but there are only 2 training images: lower it"):
        images(tmp_path, ("a", "b", "c", "d"), batch_size=3)


def test_views_are_computed_for_no_more_images_than_there_are_in_an_epoch(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often the image of a small class is repeated."""
    (tmp_path / PIXELS).write_bytes(bytes(8 * 8 * 8 * 3))
    asked: list[int] = []

    def counted(sizes: torch.Tensor, seed: int, view: int, augmentation: Augmentation, rows: np.ndarray) -> Views:
        asked.append(len(rows))
        return training_views(sizes, seed, view, augmentation, rows)

    monkeypatch.setattr("inat_job.data.module.training_views", counted)
    images(tmp_path, ("a", "b", "c", "d")).view_batches(3, np.array([4, 5, 4, 4, 6, 4]))
    assert asked == [3, 1, 1, 1]


def test_image_that_comes_again_has_another_view(tmp_path) -> None:
    (tmp_path / PIXELS).write_bytes(bytes(8 * 8 * 8 * 3))
    found = images(tmp_path, ("a", "b", "c", "d"))
    once = found.view_batches(3, np.arange(4, 8))(slice(0, 4))
    again = found.view_batches(3, np.array([5, 4, 5, 5]))(slice(0, 4))
    assert torch.equal(again.maps[:2], once.maps[[1, 0]])
    assert again.labels.tolist() == [1, 0, 1, 1]
    assert len({tuple(each.flatten().tolist()) for each in again.maps}) == 4
    assert len({tuple(each.tolist()) for each in again.colour}) == 4
    repeated = found.view_batches(3, np.array([5, 4, 5, 5]))(slice(0, 4))
    assert torch.equal(repeated.maps, again.maps)
