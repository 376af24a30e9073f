"""The pixel file: what is written is read back, and the digest is that of the rows."""

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from inat_job.data import pixel_file
from inat_job.signals import never

COUNT, SIDE = 131, 8
ROW = SIDE * SIDE * 3


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, SIDE, SIDE, 3), dtype=np.uint8)


@pytest.fixture
def written(tmp_path: Path, pixels: np.ndarray) -> tuple[Path, list[str]]:
    path = tmp_path / "pixels"
    with pixel_file.create(path, COUNT, SIDE) as file:
        for row, square in enumerate(pixels):
            file.write(row, square)
    return path, [hashlib.sha256(square.tobytes()).hexdigest() for square in pixels]


def test_rows_round_trip(written: tuple[Path, list[str]], pixels: np.ndarray) -> None:
    path, hashes = written
    assert path.read_bytes() == pixels.tobytes()
    with pixel_file.create(path, COUNT, SIDE) as file:  # the contents stay
        assert file.read(77) == pixels[77].tobytes()
        assert [file.hash(row) for row in range(COUNT)] == hashes


def test_digest_detects_any_changed_byte(written: tuple[Path, list[str]]) -> None:
    path, hashes = written
    with pixel_file.open_existing(path, COUNT, SIDE) as file:
        assert file.digest(never) == pixel_file.digest(hashes)
        for at in (0, ROW * 64 - 1, ROW * COUNT - 1):
            byte = path.read_bytes()[at]
            with path.open("r+b") as damaged:
                os.pwrite(damaged.fileno(), bytes([byte ^ 1]), at)
                assert file.digest(never) != pixel_file.digest(hashes)
                os.pwrite(damaged.fileno(), bytes([byte]), at)
        assert file.digest(never) == pixel_file.digest(hashes)


def test_keep_moves_rows_up(written: tuple[Path, list[str]], pixels: np.ndarray) -> None:
    path, hashes = written
    kept = [row for row in range(COUNT) if row % 3]
    with pixel_file.open_existing(path, COUNT, SIDE, writable=True) as file:
        file.keep(kept)
    assert path.read_bytes() == pixels[kept].tobytes()
    with pixel_file.open_existing(path, len(kept), SIDE) as file:
        assert file.digest(never) == pixel_file.digest(hashes[row] for row in kept)


def test_create_resizes_existing_file(written: tuple[Path, list[str]]) -> None:
    path, hashes = written
    for count in (COUNT + 5, COUNT - 5):
        with pixel_file.create(path, count, SIDE) as file:
            assert path.stat().st_size == file.nbytes == count * ROW
            assert file.hash(COUNT - 6) == hashes[COUNT - 6]
