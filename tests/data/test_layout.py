"""Finding the images in a tree of names."""

import os

import pytest

from inat_job.data import layout, layout_errors
from inat_job.errors import BadDataError, ConflictError, Preempted

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


@pytest.mark.parametrize("val", ["val", "validation", "valid", "Dev", "VAL"])
@pytest.mark.parametrize("train", ["train", "training", "TRAIN"])
def test_three_splits(train: str, val: str) -> None:
    """Beside a test set, val/ holds the validation images."""
    folders = {"train": train, "val": val, "test": "test"}
    names = [f"{folders[split]}/{label}/{number}.jpg" for number, split in enumerate(folders) for label in "AB"]
    found = ["test/A/2.jpg", "test/B/2.jpg", "train/A/0.jpg", "train/B/0.jpg", "val/A/1.jpg", "val/B/1.jpg"]
    assert ids(*names) == found
    assert ids(*names, "README.md", "dev.txt") == found


def test_other_name_of_a_split_that_is_there_is_not_used() -> None:
    assert ids(*TREE, "valid/A/9.jpg", "valid/B/9.jpg", "training/C/1.jpg") == IDS


FLAT = ("A/1.jpg", "A/2.jpg", "B/1.PNG", "B/2.jpg")


@pytest.mark.parametrize("root", ["", "./", "some/where/"])
def test_one_folder_a_class(root: str) -> None:
    extra = ("README.md", f"{root}notes.txt", f"{root}A/.hidden.jpg", f"{root}A/boxes.xml", "docs/a/b/c.pdf")
    assert ids(*(f"{root}{name}" for name in FLAT), *extra) == sorted([*FLAT, "A/boxes.xml"])


def test_train_alone_is_split_if_asked_for() -> None:
    asked = layout.Arrangement(test_share=0.5)
    found = layout.find_images([f"x/train/{name}" for name in FLAT], "here", arrangement=asked)
    assert [image.id for image in found] == sorted(FLAT)
    assert {image.split for image in found} == {layout.UNSPLIT}
    assert found[0].assigned("test").id == "test/A/1.jpg"
    assert layout.training_counts(found, 0.5) == (1, 1)


def test_share_of_test_images_that_are_there_is_refused() -> None:
    with pytest.raises(ConflictError, match="--test-share is 0.3, but here has a test set of its own: leave it out"):
        layout.find_images(TREE, "here", arrangement=layout.Arrangement(test_share=0.3))


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["train/Cat/1", "train/dog/1", "val/cat/1", "val/dog/1"], "('Cat' in train is 'cat' in test)"),
        (
            ["train/1. Big cat/1", "train/dog/1", "test/Big_cat/1", "test/Dog /1"],
            "('1. Big cat' in train is 'Big_cat' in test, 'dog' in train is 'Dog ' in test)",
        ),
        (["train/a/1", "train/b/1", "val/a/1", "val/c/1"], "but only train has b and only test has c."),
        (["train/a/1", "train/b/1", "val/a/1"], "but only train has b."),
        (
            ["train/a/1", "train/b/1", "test/a/1", "test/b/1", "dev/a/1"],
            "train and val must have the same classes, but only train has b.",
        ),
    ],
)
def test_classes_that_differ_are_told_side_by_side(names: list[str], said: str) -> None:
    with pytest.raises(BadDataError) as caught:
        layout.find_images(names, "here")
    assert said in str(caught.value)


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
    assert layout_errors.is_text("Straße/图.jpg")
    assert layout_errors.is_text("odd\x01but\ntext")
    assert not layout_errors.is_text(os.fsdecode(b"caf\xe9"))


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ([], "but no files at all"),
        (["set.7z"], "but only set.7z: unpack it"),
        (
            ["x/train/A/1.jpg", "x/train/B/1.jpg"],
            "but x/train/ alone: add val/, or split a test set off with --test-share 0.2.",
        ),
        (["val/A/1.jpg"], "but val/ alone: add train/"),
        (["train/A/1.jpg", "hold/A/1.jpg"], "but train/, and beside it hold/: rename one to val/"),
        (["a/train/A/1.jpg", "b/val/A/1.jpg"], "but parts of it in several folders, a/, b/: move them into one"),
        (
            ["x/train/1.jpg", "x/val/2.jpg"],
            "but files directly in x/train/, x/val/: put those of each class into a folder of its own, or list their "
            "classes in a file for --labels.",
        ),
        (["x/1.jpg", "x/2.jpg"], "but 2 images in the one folder x/: put those of each class into a folder of its own"),
        (["1.jpg", "2.jpg", "labels.csv"], "but 2 images in the one folder ./: put those of each class into a folder"),
        (["a.bin", "b.bin", "c.bin", "d.bin"], "but 4 files that are not called images, such as a.bin: check --data"),
        (
            [f"{name}/{number}.jpg" for name in ("cats/a", "dogs/b", "eels/c", "owls/d") for number in range(5)],
            "but 20 images in 4 folders at depth 2 (cats/a/, dogs/b/, eels/c/ and 1 more): "
            "move the folders of all classes into one folder",
        ),
        (["a/b/1.jpg", "c/1.jpg"], "but 2 images in 2 folders at depth 1-2 (a/b/, c/)"),
    ],
)
def test_wrong_tree_says_what_was_found(names: list[str], found: str) -> None:
    with pytest.raises(BadDataError) as caught:
        layout.find_images(names, "here")
    message = str(caught.value)
    assert message.startswith("here holds neither train/<Class>/ with val/<Class>/ or test/<Class>/ beside it nor a ")
    assert found in message
    assert len(message) < 320, "four lines of a terminal"


def test_wrong_tree_with_long_names_says_little() -> None:
    with pytest.raises(BadDataError) as caught:
        layout.find_images([f"{'deep' * 100}{number}/{number}.jpg" for number in range(10_000)], "here")
    assert len(str(caught.value)) < 400


def test_finding_images_is_interrupted() -> None:
    checks = iter([False, False, True])
    with pytest.raises(Preempted):
        layout.find_images([f"train/A/{number}.jpg" for number in range(10_000)], "here", lambda: next(checks))


def test_class_of_one_image_cannot_be_split() -> None:
    with pytest.raises(BadDataError, match="here has only one image of C: a test set can be split off classes of two"):
        ids(*FLAT, "C/1.jpg")
