"""The baseline as the bench sees it: the same images as files in folders, and its epochs by turns with ours."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from inat_job.bench import children
from inat_job.bench.epochs import Between
from inat_job.bench.plain_lightning import Spec
from inat_job.data import layout
from inat_job.data.module import ImageDataModule
from inat_job.ingest import archives
from inat_job.ingest.decode import Rejected
from inat_job.settings import Settings

_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those that ImageFolder takes; what a file is, it sees by its content."""


def unpack(container: archives.Container, images: ImageDataModule, folder: Path) -> Path:
    """Write the images to `folder` as train/, val/ and test/, split as the job splits them; returns it."""
    index = images.cache.index
    splits = {"train": images.train_rows, "val": images.val_rows, "test": images.test_rows}
    split_of = {index.ids[row]: split for split, rows in splits.items() for row in rows}
    names = {each.name: each for each in layout.find_images(container.names(), index.source) if each.id in split_of}
    for number, (name, read) in enumerate(container.load(list(names))):
        image = names[name]
        suffix = Path(image.id).suffix.lower()
        path = folder / split_of[image.id] / image.label / f"{number:07d}{suffix if suffix in _SUFFIXES else '.jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_bytes(read))
    return folder


def _bytes(read: archives.Load) -> bytes:
    try:
        return read()
    except Rejected:  # it is in the cache, so it was readable
        raise AssertionError("a image of the cache cannot be read any more") from None


def spec(settings: Settings, folder: Path, epochs: int, lockstep: bool) -> Spec:
    """What the baseline needs to know of the job."""
    flags = {key: value for key, value in children.flags_of(settings.anchored()).items() if value is not None}
    flags["data.cache_dir"] = str(Path(settings.data.cache_dir).absolute())
    return Spec(settings.part, flags, str(folder.absolute()), epochs, lockstep)


def command(spec: Spec) -> list[str]:
    """How the baseline is called."""
    return children.module("plain_lightning", spec.text())


@contextmanager
def in_lockstep(settings: Settings, folder: Path, epochs: int) -> Iterator[Between]:
    """A function that lets the baseline train for one epoch and returns its images a second."""
    with children.asked(command(spec(settings, folder, epochs, lockstep=True))) as child:
        first = True

        def epoch() -> float:
            nonlocal first
            if not first:  # it begins by itself, and meanwhile others warm up too
                child.say()
            first = False
            return float(json.loads(child.hear())["rate"])

        yield epoch
