"""Finding the images in a tree of names."""

import os

import pytest

from inat_job.data import layout
from inat_job.errors import BadDataError, Preempted

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


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], "but no files at all"),
        (["set.7z"], "but only set.7z: unpack it"),
        (["x/train/A/1.jpg", "x/train/B/1.jpg"], "but x/train/ alone: add val/"),
        (["val/A/1.jpg"], "but val/ alone: add train/"),
        (["train/A/1.jpg", "valid/A/1.jpg"], "but train/, and beside it valid/: rename one to val/"),
        (["a/train/A/1.jpg", "b/val/A/1.jpg"], "but parts of it in several folders, a/, b/: move them into one"),
        (
            ["x/train/1.jpg", "x/val/2.jpg"],
            "but files directly in x/train/, x/val/: put those of each class into a folder",
        ),
        (
            [f"{name}/{number}.jpg" for name in ("cats", "dogs", "eels", "owls") for number in range(5)],
            "but 20 files in 4 folders at depth 1 (cats/, dogs/, eels/ and 1 more): "
            "move those of each class into train/<Class>/ and val/<Class>/",
        ),
        (["a/b/1.jpg", "c/1.jpg"], "but 2 files in 2 folders at depth 1-2 (a/b/, c/)"),
    ],
)
def test_wrong_tree_says_what_was_found(names: list[str], found: str) -> None:
    with pytest.raises(BadDataError) as caught:
        layout.find_images(names, "here")
    message = str(caught.value)
    assert message.startswith("here holds no train/<Class>/ with a val/<Class>/ or test/<Class>/ beside it, ")
    assert found in message
    assert len(message) < 240, "three lines of a terminal"


def test_wrong_tree_with_long_names_says_little() -> None:
    with pytest.raises(BadDataError) as caught:
        layout.find_images([f"{'deep' * 100}{number}/{number}.jpg" for number in range(10_000)], "here")
    assert len(str(caught.value)) < 400


def test_finding_images_is_interrupted() -> None:
    checks = iter([False, False, True])
    with pytest.raises(Preempted):
        layout.find_images([f"train/A/{number}.jpg" for number in range(10_000)], "here", lambda: next(checks))
