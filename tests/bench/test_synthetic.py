"""Synthetic data sets are the same at each call, and a repeated data set has each image the same number of times."""

from collections import Counter
from pathlib import Path

from inat_job.bench import synthetic
from inat_job.data import layout
from inat_job.data.label_table import LabelRow, LabelTable
from inat_job.data.layout import Arrangement
from inat_job.ingest import archives, data_source
from inat_job.ingest.decode import decode
from inat_job.signals import never
from inat_job.storage import StorageOptions
from tests.harness.made_images import encoded, tree, write_zip


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
    archive = write_zip(tmp_path / "x.zip", tree(train=3, test=2))
    source = data_source.find(str(archive), tmp_path / "cache", StorageOptions(), never)
    path = synthetic.repeated(source, 3, tmp_path / "y.zip")
    container = archives.open_archive(path)
    found = layout.find_images(container.names(), "y")
    assert Counter((each.split, each.label) for each in found) == {
        (split, f"class0000{label}"): 3 * count for split, count in (("train", 3), ("test", 2)) for label in range(3)
    }
    contents = Counter(read() for _, read in container.load([each.name for each in found]))
    assert set(contents.values()) == {3}


def test_repeated_data_set_has_the_classes_of_a_table(tmp_path: Path) -> None:
    """Which may be called what no folder can be, and have no split: then neither has the repeated data set."""
    files = [f"{number}.jpg" for number in range(6)]
    archive = write_zip(tmp_path / "x.zip", {name: encoded(number) for number, name in enumerate(files)})
    rows = tuple(LabelRow(name, ("../../up", "a/b")[number % 2], "") for number, name in enumerate(files))
    arrangement = Arrangement(LabelTable("labels.csv", rows), 0.4)
    source = data_source.find(str(archive), tmp_path / "cache", StorageOptions(), never, arrangement)
    path = synthetic.repeated(source, 2, tmp_path / "y.zip")
    found = layout.find_images(archives.open_archive(path).names(), "y")
    assert Counter((each.split, each.label) for each in found) == {("", "class00000"): 6, ("", "class00001"): 6}
