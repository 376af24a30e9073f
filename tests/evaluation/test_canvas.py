"""Text is drawn as it is, whatever characters it has, and the bytes of a sheet depend on what it shows alone."""

import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from inat_job.evaluation import canvas
from inat_job.evaluation.canvas import Tile, file_name, plain, save_sheet

HOSTILE = (
    "<script>alert(1)</script>",
    r"$\alpha_{x}$ \frac{1}{0} 100 %",
    "two\nlines\r\n\tand a tab",
    "right\u202eto\u2066left\u200f\u0000\u0007",
    "x" * 300,
    "W" * 300,
    "\u0645\u0631\u062d\u0628\u0627 \u5b57\u5b57\u5b57 \U0001f600 \ud800",
)


@given(st.text(max_size=400), st.integers(2, 60))
def test_plain_text_is_one_short_line_of_drawn_characters(text: str, most: int) -> None:
    for shown in (plain(text, most), file_name(text, most)):
        assert len(shown) <= most
        assert all(char.isprintable() for char in shown)
        assert shown == shown.strip() or len(text) > most


@given(st.text(string.ascii_letters + string.digits + "$\\<>&{}_^%", max_size=40))
def test_visible_text_is_kept(text: str) -> None:
    assert plain(text) == text


def test_long_names_keep_the_telling_end() -> None:
    assert plain("a" * 300, 10) == "a" * 9 + "…"
    assert file_name("train/" + "a" * 300 + "1.jpg", 10) == "…aaaa1.jpg"
    assert file_name("test/Stars/007.jpg", 16) == "007.jpg"


def tiles(names: tuple[str, ...]) -> list[Tile]:
    return [
        Tile(np.full((90, 90, 3), 40 * number, dtype=np.uint8), (plain(name), file_name(name)), bool(number % 2))
        for number, name in enumerate(names)
    ]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_sheet_of_hostile_names_is_drawn_and_repeats(suffix: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_sheet(tiles(HOSTILE), tmp_path / f"{name}{suffix}", columns=3)
    first = tmp_path / f"a{suffix}"
    assert first.read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    with Image.open(first) as image:
        assert image.width == canvas.WIDTH
        assert not {"Software", "Creation Time", "date"} & set(image.info)


def test_caption_stays_in_its_cell(tmp_path: Path) -> None:
    """Also one of 40 wide letters: nothing is drawn right of its column."""
    path = tmp_path / "a.png"
    save_sheet(tiles(("W" * 300,)), path, columns=3)
    column = canvas._MARGIN + (canvas.WIDTH - 2 * canvas._MARGIN) // 3
    with Image.open(path) as image:
        drawn = np.asarray(image.convert("L")) < 250
    assert drawn[:, :column].any()
    assert not drawn[:, column:].any()


def test_right_and_wrong_differ_without_colour(tmp_path: Path) -> None:
    """Their frames and marks differ in grey too."""
    image = np.full((90, 90, 3), 255, dtype=np.uint8)
    shapes = []
    for right in (True, False):
        path = tmp_path / f"{right}.png"
        save_sheet([Tile(image, ("same",), right)], path, columns=3)
        with Image.open(path) as drawn:
            shapes.append(np.asarray(drawn.convert("L")) < 200)
    frame = np.s_[30:150, :120]
    assert (shapes[0][frame] != shapes[1][frame]).sum() > 100


def test_mosaic_fills_its_last_row_with_white() -> None:
    images = [np.zeros((2, 2, 3), dtype=np.uint8)] * 3
    whole = canvas.mosaic(images, 2, gap=1)
    assert whole.shape == (5, 5, 3)
    assert (whole[3:, 3:] == 255).all()
    assert (whole[:2, :2] == 0).all()
