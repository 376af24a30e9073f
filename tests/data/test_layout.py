"""Where the images are in a tree of names."""

import pytest

from inat_job.data import layout
from inat_job.errors import BadDataError

NO_PLATFORM = ("train/A/1.jpg", "train/B/1.jpg", "val/A/2.jpg", "val/B/2.jpg")
IDS = ["test/A/2.jpg", "test/B/2.jpg", "train/A/1.jpg", "train/B/1.jpg"]


def ids(*names: str) -> list[str]:
    return [image.id for image in layout.find_images(names, "here")]


@pytest.mark.parametrize("root", ["", "./", "some/where/", "train/", "val/", "train/test/", "a/train/b/"])
def test_the_tree_is_found_at_any_depth(root: str) -> None:
    assert ids(*(f"{root}{name}" for name in NO_PLATFORM)) == IDS


def test_what_lies_deeper_belongs_to_the_outer_tree() -> None:
    inner = [f"train/A/set/{name}" for name in NO_PLATFORM]
    assert ids(*NO_PLATFORM, *inner) == sorted([*IDS, *inner])


def test_a_tree_elsewhere_may_have_both_val_and_test() -> None:
    assert ids(*NO_PLATFORM, "other/val/A/1.jpg", "other/test/A/1.jpg") == IDS
    with pytest.raises(BadDataError, match="both val/ and test/"):
        ids(*NO_PLATFORM, "test/A/1.jpg")


@pytest.mark.parametrize("spelled", [str.title, str.upper])
def test_capitals_are_taken_where_nothing_else_is(spelled) -> None:
    capital = [name.replace("train", spelled("train")).replace("val", spelled("val")) for name in NO_PLATFORM]
    assert ids(*capital) == IDS
    assert ids(*NO_PLATFORM, *(f"x/{name}" for name in capital)) == IDS
    with pytest.raises(BadDataError, match="both train/ and T"):
        ids(*capital, "train/A/1.jpg")


@pytest.mark.parametrize("name", [".DS_Store", ".hidden/a", "a/.b", "__MACOSX/a", "../a"])
def test_litter(name: str) -> None:
    assert layout.is_ignored(name)
    assert not layout.is_ignored("./a/./b")
