"""What the data module asks of its pictures."""

import pytest

from inat_job.data.index import Cache, Index
from inat_job.data.module import Pictures
from inat_job.errors import BadDataError
from inat_job.settings import TrainSettings


def pictures(tmp_path, hashes: tuple[str, ...]) -> Pictures:
    """Train pictures with these contents, of two classes by turns; they are the test set too."""
    each = tuple(range(len(hashes)))
    index = Index(
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
    return Pictures(Cache(tmp_path, index), TrainSettings(batch_size=2))


def test_one_picture_of_each_class_is_held_out_at_least(tmp_path) -> None:
    found = pictures(tmp_path, ("a", "b", "c", "d"))
    assert [len(rows) for rows in (found.train_rows, found.val_rows, found.test_rows)] == [2, 2, 4]


def test_nothing_to_validate_on_is_bad_data(tmp_path) -> None:
    with pytest.raises(BadDataError, match=r"here.zip leaves no picture for validation.*: add some."):
        pictures(tmp_path, ("a", "b", "a", "b"))
