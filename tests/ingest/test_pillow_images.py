"""Pillow's own test images, from its source package, as a data set: torchvision's loader and ours take the same files,
and every pixel is Pillow's.
"""

import subprocess
import sys
import tarfile
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from torchvision.datasets.folder import default_loader

from inat_job.data.cache_index import Cache
from inat_job.ingest import build_cache, data_source
from inat_job.ingest.decode import FORMATS
from inat_job.signals import never
from inat_job.storage import StorageOptions
from tests.harness.made_images import encoded

pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("ignore")]

SIDE = 64
PILLOWS_LIMIT = 89_478_485
"""Pillow warns beyond it, and refuses beyond its double; importing ours turns that off."""

REASONS = {
    **dict.fromkeys(("ICO", "CUR"), "an icon"),
    "PSD": "a Photoshop document",
    **dict.fromkeys(
        ("GBR", "IM", "IMT", "IPTC", "PCD", "SPIDER", "TGA", "XBM"), "not an image in a format that is read"
    ),
}
"""By format, the reason for which we reject what Pillow reads: the first bytes of the last eight say nothing."""

TOLERANCES = {"JPEG": (4.0, 90), "MPO": (4.0, 90), "AVIF": (0.5, 4), "WEBP": (0.5, 4)}
"""By format, the mean and the largest difference: JPEGs are scaled within the DCT, to at least twice the side; the size
of a square's pixel in the others is Pillow's, up to rounding."""

EXACT = (0.05, 2)
"""All other formats, in every mode."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of Tests/images in the source package of the installed Pillow."""
    folder = tmp_path_factory.mktemp("pillow")
    wanted = ["--no-deps", "--no-binary", "pillow", f"pillow=={version('pillow')}"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder), *wanted],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"Pillow's source package can't be downloaded: {done.stderr.strip()[-200:]}")
    [package] = folder.glob("*.tar.gz")
    with tarfile.open(package) as archive:
        archive.extractall(folder, [each for each in archive if "/Tests/images/" in each.name], filter="data")
    return sorted(path for path in folder.rglob("Tests/images/**/*") if path.is_file())


@pytest.fixture(scope="module")
def cache(images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """The images in two classes, called by their number, and two test images."""
    folder = tmp_path_factory.mktemp("set")
    for name in ("train/even", "train/odd", "val/even", "val/odd"):
        (folder / name).mkdir(parents=True)
    for number, path in enumerate(images):
        path.rename(folder / image_id(number))
    for label in ("even", "odd"):
        (folder / f"val/{label}/x.jpg").write_bytes(encoded(1))
    source = data_source.find(str(folder), folder.parent / "cache", StorageOptions(), never)
    return build_cache.prepare(source, folder.parent / "cache", SIDE, 1.0, never)


def image_id(number: int) -> str:
    return f"train/{'odd' if number % 2 else 'even'}/{number:04d}.img"


def loads(path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether torchvision's loader reads it, with Pillow's own protection."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", PILLOWS_LIMIT)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            default_loader(str(path))
        except Exception:  # Pillow raises almost anything
            return False
    return True


def test_what_torchvision_reads_is_taken_or_rejected_for_a_true_reason(
    cache: Cache, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected = {each["id"]: each["reason"] for each in cache.index.rejected}
    taken, reasons = {*cache.index.ids}, {}
    for number, was in enumerate(images):
        name = image_id(number)
        assert (name in taken) != (name in rejected), was
        path = Path(cache.index.source) / name
        if name in rejected and loads(path, monkeypatch):
            with Image.open(path) as image:
                assert image.format not in FORMATS, (was, rejected[name])
                assert REASONS.get(image.format or "", f"({image.format.upper()}: convert") in rejected[name], was
            reasons[was.name] = rejected[name]
    print(*(f"{name}: {reason}" for name, reason in reasons.items()), sep="\n")
    print(f"{len(images)} files, {len(taken) - 2} taken, {len(reasons)} of the others read by torchvision's loader")
    assert len(taken) > 600


def test_pixels_are_those_of_pillow(cache: Cache, images: list[Path]) -> None:
    rows = {name: row for row, name in enumerate(cache.index.ids)}
    worst: dict[tuple[str, str], tuple[float, int, int]] = {}
    for number, was in enumerate(images):
        if (row := rows.get(image_id(number))) is None:
            continue
        with Image.open(Path(cache.index.source) / image_id(number)) as image:
            kind = (image.format or "", image.mode)
            try:
                upright = as_documented(image)
            except OSError:  # cut off: the first rows of a JPEG scaled in the DCT may suffice
                continue
        assert cache.index.sizes[row] == upright.size, was
        square = upright.resize((cache.index.side,) * 2, Image.Resampling.BILINEAR)
        difference = np.abs(np.asarray(square).astype(int) - cache.pixels[row])
        mean, most = TOLERANCES.get(kind[0], EXACT)
        assert difference.mean() <= mean, (was, kind, difference.mean())
        assert difference.max() <= most, (was, kind, difference.max())
        found = worst.get(kind, (0.0, 0, 0))
        worst[kind] = (max(found[0], difference.mean()), max(found[1], difference.max()), found[2] + 1)
    for kind, (mean, most, count) in sorted(worst.items()):
        print(f"{kind[0]:9} {kind[1]:5} {count:4} images, mean difference {mean:.2f} at most, largest {most}")
    assert len(worst) > 30


def as_documented(image: Image.Image) -> Image.Image:
    """The image as docs/data.md says: upright, on white, and deep greys as 8 bits."""
    image.load()
    transparent = "transparency" in image.info
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # it writes the rest of the metadata back
        assert image.getexif().get(0x112, 1) == 1
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(as_8_bits(np.asarray(image))).convert("RGB")
    if not (transparent or image.mode in ("RGBA", "LA", "PA", "RGBa", "La")):
        return image.convert("RGB")
    layered = np.asarray(image.convert("RGBA")).astype(float)
    colours, opacity = layered[..., :3], layered[..., 3:] / 255
    if opacity.max() * 255 >= 16:
        colours = np.round(colours * opacity + 255 * (1 - opacity))
    return Image.fromarray(colours.astype(np.uint8))


def as_8_bits(grey: np.ndarray) -> np.ndarray:
    values = grey.astype(float)
    low, high = values.min(), values.max()
    if grey.dtype.kind == "f" and low >= 0 and 1 < high <= 255 and high >= 16:
        return values.astype(np.uint8)
    if grey.dtype.kind != "f" and low >= 0 and high < 2**16:
        bits = min(bits for bits in (8, 10, 12, 14, 16) if high < 2**bits)
        return np.floor(values / 2 ** (bits - 8)).astype(np.uint8)
    return ((values - low) * 255 / max(high - low, 1e-9)).astype(np.uint8)
