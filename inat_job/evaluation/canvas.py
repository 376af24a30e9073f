"""Sheets of images with captions, and text that is safe to draw. The only importer of matplotlib."""

import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.image import imsave
from matplotlib.patches import Rectangle

WIDTH = 992
"""Pixels of a figure's width: the column of report.html."""

# The palette of Okabe and Ito, Color Universal Design, 2008.
BLACK, ORANGE, GREEN, BLUE, VERMILLION = "#000000", "#E69F00", "#009E73", "#0072B2", "#D55E00"
GREY = "#595959"

_DPI = 100
_MARGIN, _GAP, _LINE = 12, 8, 17
_TEXT_PT = 9.0
_JPEG = {"quality": 85, "subsampling": 0, "optimize": True}  # full resolution of colour keeps text sharp
_MARKS = {True: ("✓ right", BLUE, "-", 1.5), False: ("✗ wrong", VERMILLION, (0, (3, 2)), 3.0)}
"""How right and wrong predictions are told apart: word and mark, colour, line style, line width."""


@dataclass(frozen=True, eq=False)
class Tile:
    """An image, uint8 (h, w, 3), with lines of caption beside it; `right` marks a prediction as right or wrong."""

    image: np.ndarray
    lines: tuple[str, ...]
    right: bool | None = None


def plain(text: str, most: int = 40) -> str:
    """`text` as one line of at most `most` characters, without control, formatting and unassigned characters."""
    # Marks of direction and private use are of category C too.
    drawn = (char for char in text if char.isspace() or unicodedata.category(char)[0] != "C")
    kept = " ".join("".join(drawn).split())
    return kept if len(kept) <= most else f"{kept[: most - 1]}…"


def file_name(name: str, most: int = 16) -> str:
    """The file's name in an image's id, without its folders, or the end of it, as `plain` text."""
    kept = plain(name.rpartition("/")[2], len(name) + 1)
    return kept if len(kept) <= most else f"…{kept[1 - most :]}"


def new_figure(height: float, layout: str | None = "constrained") -> Figure:
    """An empty figure, WIDTH pixels wide and `height` high."""
    figure = Figure(figsize=(WIDTH / _DPI, height / _DPI), dpi=_DPI, layout=layout)  # type: ignore[arg-type]
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a PNG or a JPEG, by the path's suffix, whose bytes depend on what is drawn alone."""
    options: dict[str, Any] = {"metadata": {"Software": None}} if path.suffix == ".png" else {"pil_kwargs": _JPEG}
    with _any_script():
        figure.savefig(path, dpi=_DPI, **options)


@contextmanager
def _any_script() -> Iterator[None]:
    """Without a warning for each character that the font lacks; a box is drawn for it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def save_sheet(tiles: Sequence[Tile], path: Path, columns: int) -> None:
    """Write tiles in rows, with the captions to their right."""
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(_height(tile) for tile in row) + _GAP for row in rows]
    top = _MARGIN
    figure = new_figure(top + sum(heights) + _MARGIN, layout=None)
    pen = _Pen(figure)
    cell = (WIDTH - 2 * _MARGIN) // columns
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            pen.tile(_MARGIN + column * cell, top, tile, cell)
        top += height
    pen.paste()
    save(figure, path)


def _height(tile: Tile) -> int:
    return max(len(tile.image), _LINE * (len(tile.lines) + (tile.right is not None)))


class _Pen:
    """Draws on a figure in pixels from its top left corner."""

    def __init__(self, figure: Figure) -> None:
        self._figure = figure
        width, self._height = (round(side * _DPI) for side in figure.get_size_inches())
        self._pixels = np.full((self._height, width, 3), 255, dtype=np.uint8)
        canvas: Any = figure.canvas
        self._renderer = canvas.get_renderer()

    def tile(self, x: int, y: int, tile: Tile, width: int) -> None:
        h, w = tile.image.shape[:2]
        self._pixels[y : y + h, x : x + w] = tile.image
        lines: list[tuple[str, dict[str, Any]]] = [(line, {}) for line in tile.lines]
        if tile.right is not None:
            mark, colour, style, line_width = _MARKS[tile.right]
            lines.insert(0, (mark, {"color": colour, "weight": "bold"}))
            corner = (x, self._height - y - h)
            box = Rectangle(corner, w, h, fill=False, edgecolor=colour, linestyle=style, linewidth=line_width)
            box.set_transform(None)
            self._figure.add_artist(box)
        for number, (line, style_of) in enumerate(lines):
            self.text(x + w + _GAP, y + number * _LINE, line, width - w - 2 * _GAP, **style_of)

    def text(self, x: int, y: int, text: str, width: int, **style: Any) -> None:
        """Draw a line whose top left corner is at x, y, shortened to `width` pixels."""
        font = FontProperties(size=_TEXT_PT, weight=style.get("weight", "normal"))
        fitting = self._fitting(text, width, font)
        at = {"x": x / WIDTH, "y": 1 - y / self._height}
        self._figure.text(s=fitting, va="top", parse_math=False, fontproperties=font, **at, **style)

    def _fitting(self, text: str, width: int, font: FontProperties) -> str:
        with _any_script():
            while len(text) > 1 and self._renderer.get_text_width_height_descent(text, font, False)[0] > width:
                text = f"{text[:-2].rstrip()}…"
        return text

    def paste(self) -> None:
        self._figure.figimage(self._pixels, 0, 0, zorder=-1)


def row_of(images: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """Images uint8 (h, w, 3) of one height side by side."""
    space = np.full((len(images[0]), gap, 3), 255, dtype=np.uint8)
    parts = [part for image in images for part in (image, space)]
    return np.concatenate(parts[:-1], axis=1)


def mosaic(images: Sequence[np.ndarray], columns: int, gap: int = 4) -> np.ndarray:
    """Images uint8 (h, w, 3) of one size in rows of `columns`; white where there is none."""
    white = np.full_like(images[0], 255)
    padded = [*images, *[white] * (-len(images) % columns)]
    rows = [row_of(padded[start : start + columns], gap) for start in range(0, len(padded), columns)]
    space = np.full((gap, rows[0].shape[1], 3), 255, dtype=np.uint8)
    whole: np.ndarray = np.concatenate([part for row in rows for part in (row, space)][:-1])
    return whole


def enlarged(image: np.ndarray, side: int) -> np.ndarray:
    """An image (h, w, ...) scaled to (side, side, ...) by its nearest pixels."""
    rows, columns = (np.arange(side) * length // side for length in image.shape[:2])
    scaled: np.ndarray = image[rows][:, columns]
    return scaled


def in_colours(values: np.ndarray, name: str = "viridis") -> np.ndarray:
    """Values in 0..1 of any shape as colours of a map of matplotlib, uint8 (..., 3)."""
    return np.asarray(colormaps[name](values, bytes=True)[..., :3])


def save_image(image: np.ndarray, path: Path) -> None:
    """Write uint8 (h, w, 3) as a JPEG."""
    imsave(path, image, format="jpg", pil_kwargs={"quality": 75, "optimize": True})
