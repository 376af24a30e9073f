"""The generated data set of `--data demo:`: four kinds of drawn shapes that a small network can learn."""

import io
import math
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from inat_job import signals
from inat_job.signals import Stop
from inat_job.storage.cache_locks import cache_errors
from inat_job.storage.disk import write_atomic

CLASSES = ("Bars", "Discs", "Rings", "Stars")
TRAIN_EACH, TEST_EACH = 100, 25


def make(folder: Path, stop: Stop) -> Path:
    """The path of the archive, drawn at the first call; its bytes are always the same.

    Raises ConflictError if the folder cannot be written, Preempted.
    """
    path = folder / "demo-v1.zip"
    with cache_errors(folder.parent):
        if path.exists():
            return path
    buffer = io.BytesIO()
    rng = np.random.Generator(np.random.Philox(key=2024))
    with zipfile.ZipFile(buffer, "w") as archive:
        for split, each in (("train", TRAIN_EACH), ("val", TEST_EACH)):
            for name in CLASSES:
                signals.check(stop, "drawing the demo images")
                for number in range(each):
                    member = zipfile.ZipInfo(f"demo/{split}/{name}/{number:03d}.jpg")
                    archive.writestr(member, _jpeg(name, rng))
    with cache_errors(folder.parent):
        write_atomic(path, buffer.getvalue())
    return path


def _jpeg(name: str, rng: np.random.Generator) -> bytes:
    width, height = (int(side) for side in rng.integers(72, 129, 2))
    noise = rng.normal(rng.integers(60, 196, 3), 25, (height, width, 3)).clip(0, 255)
    image = Image.fromarray(noise.astype(np.uint8))
    colour = tuple(int(value) for value in rng.integers(0, 256, 3))
    radius = float(rng.uniform(0.25, 0.42)) * min(width, height)
    centre = (float(rng.uniform(radius, width - radius)), float(rng.uniform(radius, height - radius)))
    _draw(ImageDraw.Draw(image), name, centre, radius, colour, float(rng.uniform(0, math.pi)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _draw(
    draw: ImageDraw.ImageDraw,
    name: str,
    centre: tuple[float, float],
    radius: float,
    colour: tuple[int, ...],
    turn: float,
) -> None:
    x, y = centre
    box = (x - radius, y - radius, x + radius, y + radius)
    if name == "Discs":
        draw.ellipse(box, fill=colour)
    elif name == "Rings":
        draw.ellipse(box, outline=colour, width=max(3, int(radius / 5)))
    elif name == "Bars":
        dx, dy = radius * math.cos(turn), radius * math.sin(turn)
        draw.line((x - dx, y - dy, x + dx, y + dy), fill=colour, width=max(4, int(radius / 4)))
    else:
        radii = [radius, radius * 0.4] * 5
        angles = [turn + math.pi * point / 5 for point in range(10)]
        draw.polygon(
            [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(radii, angles, strict=True)], fill=colour
        )
