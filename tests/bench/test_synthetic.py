"""Synthetic data sets are the same at each call, and a repeated data set has each image the same number of times."""

from collections import Counter
from pathlib import Path

from inat_job.bench import synthetic
from inat_job.data import layout
from inat_job.ingest import archives
from inat_job.ingest.decode import decode
from tests.harness.made_images import tree, write_zip


def test_synthetic_images_are_reproducible_and_all_differ(tmp_path: Path) -> None:
    first, second = (synthetic.synthetic(tmp_path / name, 100, 40) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    container = archives.open_archive(first)
    found = layout.find_images(container.names(), "x")
    assert Counter(each.split for each in found) == {"train": 100, "test": 20}
    assert len(layout.class_names(found)) == synthetic.CLASSES
    contents = {read() for _, read in container.load(container.names())}
    assert len(contents) == 120
    assert decode(next(iter(contents)), 32)[1] == (40, 30)


def test_repeated_data_set_has_each_image_equally_often(tmp_path: Path) -> None:
    source = archives.open_archive(write_zip(tmp_path / "x.zip", tree(train=3, test=2)))
    path = synthetic.repeated(source, "x", 3, tmp_path / "y.zip")
    container = archives.open_archive(path)
    found = layout.find_images(container.names(), "y")
    assert Counter((each.split, each.label) for each in found) == {
        (split, name): 3 * count for split, count in (("train", 3), ("test", 2)) for name in ("Ants", "Bees", "Cats")
    }
    contents = Counter(read() for _, read in container.load([each.name for each in found]))
    assert set(contents.values()) == {3}
