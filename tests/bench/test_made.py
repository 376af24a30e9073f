"""Pictures that are made are the same at each call, and a repeated data set has each picture as often."""

from collections import Counter
from pathlib import Path

from inat_job.bench import made
from inat_job.data import archives, layout
from inat_job.data.decode import decode
from pictures import tree, write_zip


def test_made_pictures_are_the_same_again_and_all_differ(tmp_path: Path) -> None:
    first, second = (made.synthetic(tmp_path / name, 100, 40) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    container = archives.open_archive(first)
    found = layout.find(container.names(), "x")
    assert Counter(each.split for each in found) == {"train": 100, "test": 20}
    assert len(layout.classes(found)) == made.CLASSES
    contents = {read() for _, read in container.load(container.names())}
    assert len(contents) == 120
    assert decode(next(iter(contents)), 32)[1] == (40, 30)


def test_a_repeated_data_set_has_each_picture_as_often(tmp_path: Path) -> None:
    source = archives.open_archive(write_zip(tmp_path / "x.zip", tree(train=3, test=2)))
    path = made.repeated(source, "x", 3, tmp_path / "y.zip")
    container = archives.open_archive(path)
    found = layout.find(container.names(), "y")
    assert Counter((each.split, each.label) for each in found) == {
        (split, name): 3 * count for split, count in (("train", 3), ("test", 2)) for name in ("Ants", "Bees", "Cats")
    }
    contents = Counter(read() for _, read in container.load([each.name for each in found]))
    assert set(contents.values()) == {3}
