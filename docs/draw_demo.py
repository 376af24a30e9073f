"""Draws docs/demo.png, the image in README.md: the plots of a `make demo` run, side by side.

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
HEIGHT = 440
COLOURS = 64


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "entrypoint.py"), *COMMAND, *REST]
        subprocess.run(command, cwd=folder, check=True)  # noqa: S603
        plots = [Image.open(Path(folder, "runs/demo/plots", name)) for name in ("curves.png", "confusion.png")]
        scaled = [each.convert("RGB").resize((each.width * HEIGHT // each.height, HEIGHT)) for each in plots]
    image = Image.new("RGB", (sum(each.width for each in scaled), HEIGHT), "white")
    left = 0
    for each in scaled:
        image.paste(each, (left, 0))
        left += each.width
    image.quantize(COLOURS).save(ROOT / "docs" / "demo.png", optimize=True)


if __name__ == "__main__":
    main()
