"""Finding the images in a tree of names."""

import os

import pytest

from inat_job.data import layout
from inat_job.errors import BadDataError

TREE = ("train/A/1.jpg", "train/B/1.jpg", "val/A/2.jpg", "val/B/2.jpg")
IDS = ["test/A/2.jpg", "test/B/2.jpg", "train/A/1.jpg", "train/B/1.jpg"]


def ids(*names: str) -> list[str]:
    return [image.id for image in layout.find_images(names, "here")]


@pytest.mark.parametrize("root", ["", "./", "some/where/", "train/", "val/", "train/test/", "a/train/b/"])
def test_find_images_at_any_depth(root: str) -> None:
    assert ids(*(f"{root}{name}" for name in TREE)) == IDS


def test_inner_tree_belongs_to_outer() -> None:
    inner = [f"train/A/set/{name}" for name in TREE]
    assert ids(*TREE, *inner) == sorted([*IDS, *inner])


def test_val_and_test_folders() -> None:
    assert ids(*TREE, "other/val/A/1.jpg", "other/test/A/1.jpg") == IDS
    with pytest.raises(BadDataError, match="both val/ and test/"):
        ids(*TREE, "test/A/1.jpg")


@pytest.mark.parametrize("spelled", [str.title, str.upper])
def test_capitalised_folders(spelled) -> None:
    capital = [name.replace("train", spelled("train")).replace("val", spelled("val")) for name in TREE]
    assert ids(*capital) == IDS
    assert ids(*TREE, *(f"x/{name}" for name in capital)) == IDS
    with pytest.raises(BadDataError, match="both train/ and T"):
        ids(*capital, "train/A/1.jpg")


@pytest.mark.parametrize("name", [".DS_Store", ".hidden/a", "a/.b", "__MACOSX/a", "../a"])
def test_is_ignored(name: str) -> None:
    assert layout.is_ignored(name)
    assert not layout.is_ignored("./a/./b")


def test_is_text() -> None:
    assert layout.is_text("Straße/图.jpg")
    assert layout.is_text("odd\x01but\ntext")
    assert not layout.is_text(os.fsdecode(b"caf\xe9"))
