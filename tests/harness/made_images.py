"""Images, archives and folders that the tests make for themselves."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("Ants", "Bees", "Cats")


def encoded(seed: int, size: tuple[int, int] = (40, 30), format: str = "JPEG", mode: str = "RGB") -> bytes:
    """An image file of smooth noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, format)
    return buffer.getvalue()


def tree(train: int = 10, test: int = 4, test_name: str = "val", root: str = "some/where/") -> dict[str, bytes]:
    """File contents by path: a data set of three classes, with hidden files that must be ignored."""
    files: dict[str, bytes] = {"__MACOSX/._train": b"x", f"{root}.DS_Store": b"x", f"{root}train/.DS_Store": b"x"}
    for label, name in enumerate(CLASSES):
        for number in range(train):
            files[f"{root}train/{name}/{number:02d}.jpg"] = encoded(1000 * label + number)
        for number in range(test):
            files[f"{root}{test_name}/{name}/{number:02d}.jpg"] = encoded(1000 * label + 500 + number)
    return files


def write_zip(path: Path, files: Mapping[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)  # of 1980: equal files make equal archives at any time
    return path


def write_tar(path: Path, files: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_folder(path: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    return path
