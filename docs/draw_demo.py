"""Draws docs/demo.png, the image in README.md: curves, confusion matrix and predictions of a `make demo` run.

    .venv/bin/python docs/draw_demo.py

The images are the made-up ones of `--data demo:`. The run takes a minute or so on two CPU cores.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ["parta", "--data", "demo:", "--image-size", "64", "--epochs", "30", "--batch-size", "32"]
REST = ["--wandb", "off", "--run-id", "demo"]
WIDTH, HEIGHT = 1100, 380
SHOWN = 0.4
"""The part of the sheet of predictions that is shown, from its top: four rows of ten."""

COLOURS = 128


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "entrypoint.py"), *COMMAND, *REST]
        subprocess.run(command, cwd=folder, check=True)  # noqa: S603
        plots = Path(folder, "runs/demo/plots")
        names = ("curves.png", "confusion.png", "predictions.jpg")
        curves, confusion, sheet = (Image.open(plots / name).convert("RGB") for name in names)
    above = [each.resize((each.width * HEIGHT // each.height, HEIGHT)) for each in (curves, confusion)]
    rows = sheet.crop((0, 0, sheet.width, int(sheet.height * SHOWN)))
    below = rows.resize((WIDTH, rows.height * WIDTH // rows.width))
    image = Image.new("RGB", (WIDTH, HEIGHT + below.height), "white")
    image.paste(above[0], (0, 0))
    image.paste(above[1], (WIDTH - above[1].width, 0))
    image.paste(below, (0, HEIGHT))
    image.quantize(COLOURS).save(ROOT / "docs" / "demo.png", optimize=True)


if __name__ == "__main__":
    main()
