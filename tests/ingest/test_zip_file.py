"""Zips made to harm, damaged zips, and zip64."""

import bz2
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from inat_job.errors import BadDataError, Preempted
from inat_job.ingest import container, zip_directory
from inat_job.ingest.archives import open_archive
from inat_job.ingest.decode import Rejected
from tests.harness.made_images import encoded, write_zip

LARGE_MIB = 128
"""Well over what reading may take."""


def zeros(compressor: object) -> bytes:
    """LARGE_MIB of zeros, compressed."""
    block = bytes(2**20)
    pieces = [compressor.compress(block) for _ in range(LARGE_MIB)]  # type: ignore[attr-defined]
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
    opened = open_archive(tmp_path / "x.zip")
    assert {name: read() for name, read in opened.load(opened.names())} == {
        "train/A/1.jpg": content,
        "train/A/2.jpg": b"",
    }
    data = bytearray((tmp_path / "x.zip").read_bytes())
    data[60:400] = bytes(340)
    (tmp_path / "x.zip").write_bytes(data)
    opened = open_archive(tmp_path / "x.zip")
    (_, read), _ = opened.load(opened.names())
    with pytest.raises(Rejected, match="damaged in the archive"):
        read()


def test_zip64(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, archive.open("train/A/1.jpg", "w", force_zip64=True) as f:
        f.write(b"one")
    opened = open_archive(tmp_path / "x.zip")
    assert [read() for _, read in opened.load(opened.names())] == [b"one"]


def test_invalid_utf8_name_is_bad_data(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"train/A/é.jpg": b"x"})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    with pytest.raises(BadDataError, match="x.zip is not an intact archive"):
        open_archive(path)


def zip_of_many(path: Path, count: int) -> Path:
    """A zip64 of empty members, as zipfile takes minutes to write it."""
    entries, offset = [], 0
    with path.open("wb") as file:
        for number in range(count):
            name = b"%s/class_%04d/ILSVRC2012_%08d.JPEG" % (
                b"train" if number // 1000 % 20 else b"val",
                number % 1000,
                number,
            )
            stated = struct.pack("<HHHHIIIHH", 0, 0, 0, 33, 0, 0, 0, len(name), 0)
            file.write(struct.pack("<4sH", b"PK\3\4", 20) + stated + name)
            fixed = struct.pack("<4sHH", b"PK\1\2", 20, 20) + stated
            entries.append(fixed + struct.pack("<HHHII", 0, 0, 0, 0, offset) + name)
            offset += 30 + len(name)
        directory = b"".join(entries)
        file.write(directory)
        file.write(struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), offset))
        file.write(struct.pack("<4sIQI", b"PK\6\7", 0, offset + len(directory), 1))
        file.write(struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0))
    return path


_LIST = """
import resource, sys
from pathlib import Path
from inat_job.data import layout
from inat_job.ingest.archives import open_archive
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
images = layout.find_images(open_archive(Path(sys.argv[1])).names(), "x")
print(len(images), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.soak
def test_listing_of_a_large_zip_is_within_a_gigabyte(tmp_path: Path) -> None:
    """ImageNet has 1.3 million images."""
    path = zip_of_many(tmp_path / "x.zip", container.MAX_MEMBERS)
    command = [sys.executable, "-c", _LIST, str(path)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    count, grown_kib = map(int, done.stdout.split())
    assert count == container.MAX_MEMBERS
    assert grown_kib < 2**20


def test_listing_of_a_zip_is_interrupted(tmp_path: Path) -> None:
    path = zip_of_many(tmp_path / "x.zip", 10_000)
    checks = iter([False, False, True])
    with pytest.raises(Preempted):
        open_archive(path, stop=lambda: next(checks))


def test_large_directory_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zip_of_many(tmp_path / "x.zip", 100)
    monkeypatch.setattr(zip_directory, "MAX_DIRECTORY_BYTES", 5000)
    monkeypatch.setattr(zip_directory, "ZipDirectory", lambda *fields: pytest.fail("the directory was read"))
    with pytest.raises(BadDataError, match=r"x.zip has a directory of 8,[0-9]+ bytes, more than 5,000"):
        open_archive(path)
