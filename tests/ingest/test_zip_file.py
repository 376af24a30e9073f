"""Zips made to harm, damaged zips, and zip64."""

import bz2
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from inat_job.errors import BadDataError
from inat_job.ingest.archives import open_archive
from inat_job.ingest.decode import Rejected
from tests.harness.made_images import encoded, write_zip

HALF_GIB = 2**29


def zeros(compressor: object) -> bytes:
    """Half a GiB of zeros, compressed."""
    block = bytes(2**20)
    pieces = [compressor.compress(block) for _ in range(HALF_GIB // 2**20)]  # type: ignore[attr-defined]
    return b"".join(pieces) + compressor.flush()  # type: ignore[attr-defined]


def zip_of_one(path: Path, packed: bytes, method: int, size: int) -> Path:
    """A zip whose headers state any `method` and `size` for its only member."""
    name = b"train/A/1.jpg"
    stated = struct.pack("<HHHHIIIHH", 0, method, 0, 0, 0, len(packed), size, len(name), 0)
    local = struct.pack("<4sH", b"PK\3\4", 63) + stated + name + packed
    listed = struct.pack("<4sHH", b"PK\1\2", 63, 63) + stated + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(listed), len(local), 0)
    path.write_bytes(local + listed + end)
    return path


def test_member_larger_than_stated_is_cut(tmp_path: Path, read_in_child: Callable[[Path], tuple[int, str]]) -> None:
    grown_kib, message = read_in_child(
        zip_of_one(tmp_path / "x.zip", zeros(zlib.compressobj(9, zlib.DEFLATED, -15)), 8, 1000)
    )
    assert message.startswith("damaged in the archive: Bad CRC-32")
    assert grown_kib < 50_000


def test_bzip2_member_is_not_read(tmp_path: Path, read_in_child: Callable[[Path], tuple[int, str]]) -> None:
    grown_kib, message = read_in_child(zip_of_one(tmp_path / "x.zip", zeros(bz2.BZ2Compressor()), 12, 1000))
    assert message.startswith("compression method 12 is not supported, only deflate is")
    assert grown_kib < 50_000


def test_damaged_member_is_rejected(tmp_path: Path) -> None:
    content = encoded(1, (400, 300))
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/A/1.jpg", content)
        archive.writestr("train/A/2.jpg", b"")
    container = open_archive(tmp_path / "x.zip")
    assert {name: read() for name, read in container.load(container.names())} == {
        "train/A/1.jpg": content,
        "train/A/2.jpg": b"",
    }
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[60:400] = bytes(340)
    (tmp_path / "x.zip").write_bytes(data)
    container = open_archive(tmp_path / "x.zip")
    (_, read), _ = container.load(container.names())
    with pytest.raises(Rejected, match="damaged in the archive"):
        read()


def test_zip64(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, archive.open("train/A/1.jpg", "w", force_zip64=True) as f:
        f.write(b"one")
    container = open_archive(tmp_path / "x.zip")
    assert [read() for _, read in container.load(container.names())] == [b"one"]


def test_invalid_utf8_name_is_bad_data(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"train/A/é.jpg": b"x"})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    with pytest.raises(BadDataError, match="x.zip is not an intact archive"):
        open_archive(path)
