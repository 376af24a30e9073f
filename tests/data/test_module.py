"""What the data module asks of its images."""

import pytest

from inat_job.data.cache_index import Cache, CacheIndex
from inat_job.data.module import ImageDataModule
from inat_job.errors import BadDataError
from inat_job.settings import TrainSettings


def images(tmp_path, hashes: tuple[str, ...]) -> ImageDataModule:
    """Train images with these contents, of two classes by turns; they are the test set too."""
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
    return ImageDataModule(Cache(tmp_path, index), TrainSettings(batch_size=2))


def test_one_image_of_each_class_is_held_out_at_least(tmp_path) -> None:
    found = images(tmp_path, ("a", "b", "c", "d"))
    assert [len(rows) for rows in (found.train_rows, found.val_rows, found.test_rows)] == [2, 2, 4]


def test_nothing_to_validate_on_is_bad_data(tmp_path) -> None:
    with pytest.raises(BadDataError, match=r"here.zip leaves no image for validation.*: add some."):
        images(tmp_path, ("a", "b", "a", "b"))
