"""Synthetic data sets for the bench, and multiples of a given data set."""

import io
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath

import torch
from PIL import Image
from torch.nn import functional as F

from inat_job.data import layout
from inat_job.host import cpu
from inat_job.ingest.data_source import DataSource
from inat_job.ingest.decode import Rejected
from inat_job.storage.cache_locks import cache_errors

CLASSES = 10
TEST_SHARE = 0.2
_BACKGROUNDS = 32
_BATCH = 256


def synthetic(folder: Path, count: int, side: int) -> Path:
    """A zip of `count` training images and a fifth as many test images of ten classes; the same at each call.

    They are JPEGs whose longer side has `side` pixels, of noise that is smooth at several scales and has the colour of
    its class: a network can learn a little, and they decode like photos.
    """
    path = folder / f"synthetic-{count}-{side}.zip"
    if path.exists():
        return path
    draft = path.with_suffix(".tmp")
    with cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(draft, "w") as archive:
            for split, amount, seed in (("train", count, 0), ("val", round(TEST_SHARE * count), 10**9)):
                for number, data in enumerate(_jpegs(amount, seed, side)):
                    name = f"synthetic/{split}/Class{number % CLASSES}/{number:07d}.jpg"
                    archive.writestr(zipfile.ZipInfo(name), data)
        draft.replace(path)
    return path


def _jpegs(count: int, seed: int, side: int) -> Iterator[bytes]:
    backgrounds = _backgrounds(side)
    with ThreadPoolExecutor(cpu.available_cpus()) as pool:
        for start in range(0, count, _BATCH):
            yield from pool.map(partial(_jpeg, backgrounds, seed), range(start, min(start + _BATCH, count)))


def _backgrounds(side: int) -> torch.Tensor:
    """float32 (_BACKGROUNDS, 3, 3/4 side, side) in 0..255."""
    generator = torch.Generator().manual_seed(0)
    size = (max(8, 3 * side // 4), max(8, side))
    total = torch.full((_BACKGROUNDS, 3, *size), 128.0)
    for cells, strength in ((4, 40.0), (16, 25.0), (64, 12.0)):
        noise = torch.randn(_BACKGROUNDS, 3, cells, cells, generator=generator)
        total += strength * F.interpolate(noise, size, mode="bilinear")
    return total


def _jpeg(backgrounds: torch.Tensor, seed: int, number: int) -> bytes:
    generator = torch.Generator().manual_seed(seed + number)
    background = backgrounds[int(torch.randint(_BACKGROUNDS, (), generator=generator))]
    down, right = (int(torch.randint(extent, (), generator=generator)) for extent in background.shape[1:])
    angle = torch.tensor(2 * torch.pi * (number % CLASSES) / CLASSES)
    tint = 30 * torch.stack([angle.cos(), angle.sin(), -angle.cos()])
    shade = 20 * torch.randn(3, generator=generator)
    pixels = torch.roll(background, (down, right), (1, 2)) + (tint + shade).view(3, 1, 1)
    buffer = io.BytesIO()
    Image.fromarray(pixels.clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def class_folders(classes: Sequence[str]) -> dict[str, str]:
    """A folder for each class, named by its number: a class of a table may be called anything."""
    return {label: f"class{number:05d}" for number, label in enumerate(classes)}


def repeated(source: DataSource, times: int, path: Path) -> Path:
    """A zip at `path` with every image of a data set `times` times, each time under another name.

    Its folders are the splits and the classes' by number.
    """
    container = source.open()
    found = layout.find_images(container.names(), source.uri, arrangement=source.arrangement)
    images = {each.name: each for each in found}
    folder_of = class_folders(layout.class_names(found))
    with zipfile.ZipFile(path, "w") as archive:
        for number, (name, read) in enumerate(container.load(list(images))):
            image = images[name]
            try:
                data = read()
            except Rejected:
                continue
            for copy in range(times):
                member = PurePosixPath("repeated", image.split, folder_of[image.label], f"{number:07d}-{copy}.jpg")
                archive.writestr(zipfile.ZipInfo(str(member)), data)
    return path
