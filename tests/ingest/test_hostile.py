"""Archives and images made to harm: what they may take of memory is bounded, and what they hide is not lost."""

import bz2
import errno
import gzip
import io
import lzma
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inat_job.errors import BadDataError, TransientError
from inat_job.ingest import data_source, limits, tar_file, zip_file
from inat_job.ingest import decode as decoding
from inat_job.ingest.archives import open_archive
from inat_job.ingest.decode import Rejected, decode
from inat_job.signals import never
from inat_job.storage import StorageOptions
from tests.harness.made_images import encoded, tree, write_folder, write_tar, write_zip

ROOT = Path(__file__).parents[2]
HALF_GIB = 2**29
READ = """
import resource, sys
from pathlib import Path
from inat_job.ingest.archives import open_archive
from inat_job.errors import JobError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    container = open_archive(Path(sys.argv[1]))
    for _, read in container.load(container.names()):
        read()
except JobError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


def kib_and_words(path: Path) -> tuple[int, str]:
    """KiB that reading an archive adds to a process's largest size, and how it ends."""
    done = subprocess.run([sys.executable, "-c", READ, path], cwd=ROOT, capture_output=True, text=True, check=True)
    grown, words = done.stdout.split(" ", 1)
    return int(grown), words


def zeros(compressor: object) -> bytes:
    block = bytes(2**20)
    pieces = [compressor.compress(block) for _ in range(HALF_GIB // 2**20)]  # type: ignore[attr-defined]
    return b"".join(pieces) + compressor.flush()  # type: ignore[attr-defined]


def zip_of_one(path: Path, packed: bytes, method: int, size: int) -> Path:
    """A zip that says what it likes of its only member."""
    name = b"train/A/1.jpg"
    said = struct.pack("<HHHHIIIHH", 0, method, 0, 0, 0, len(packed), size, len(name), 0)
    local = struct.pack("<4sH", b"PK\3\4", 63) + said + name + packed
    listed = struct.pack("<4sHH", b"PK\1\2", 63, 63) + said + struct.pack("<HHHII", 0, 0, 0, 0, 0) + name
    end = struct.pack("<4sHHHHIIH", b"PK\5\6", 0, 0, 1, 1, len(listed), len(local), 0)
    path.write_bytes(local + listed + end)
    return path


def test_a_member_that_is_more_than_it_says_is_cut_before_it_unfolds(tmp_path: Path) -> None:
    grown, words = kib_and_words(
        zip_of_one(tmp_path / "x.zip", zeros(zlib.compressobj(9, zlib.DEFLATED, -15)), 8, 1000)
    )
    assert words.startswith("damaged in the archive: Bad CRC-32")
    assert grown < 50_000


def test_a_compression_without_bounds_is_not_read(tmp_path: Path) -> None:
    grown, words = kib_and_words(zip_of_one(tmp_path / "x.zip", zeros(bz2.BZ2Compressor()), 12, 1000))
    assert words.startswith("of compression method 12, where only deflate is read")
    assert grown < 50_000


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_header_without_end_is_refused_before_it_unfolds(kind: bytes, tmp_path: Path) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = kind, HALF_GIB
    with gzip.open(tmp_path / "x.tar.gz", "wb", 1) as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(HALF_GIB // 2**20):
            file.write(bytes(2**20))
    grown, words = kib_and_words(tmp_path / "x.tar.gz")
    assert "a header claims to have more than 1048576 bytes" in words
    assert grown < 50_000


def test_names_without_number_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_MEMBERS", 20)
    for write, name in ((write_zip, "x.zip"), (write_tar, "x.tar.gz")):
        with pytest.raises(BadDataError, match="has more than 20 members"):
            open_archive(write(tmp_path / name, tree()))


def test_empty_members_of_a_tar_unfold_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "ALWAYS_ALLOWED_BYTES", 2**20)
    monkeypatch.setattr(container, "MAX_UNFOLDING", 10)
    with pytest.raises(BadDataError, match="is a zip bomb"):
        open_archive(write_tar(tmp_path / "x.tar.gz", {f"train/A/{number}.jpg": b"" for number in range(10_000)}))


@pytest.mark.parametrize("at", [1, 5, 9])
def test_a_damaged_header_does_not_end_a_tar_in_silence(at: int, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"train/A/{number}.jpg": bytes(100) for number in range(10)})
    data = bytearray(path.read_bytes())
    data[at * 1024 + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadDataError, match=f"the header after its {at} members is damaged"):
        open_archive(path)


def test_a_tar_may_end_without_zeros(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"train/A/{number}.jpg": bytes(100) for number in range(10)})
    path.write_bytes(path.read_bytes()[: 10 * 1024])
    assert len(open_archive(path).names()) == 10


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_damaged_stream_is_an_archive_that_is_not_intact(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    files = {f"train/A/{number}.jpg": os.urandom(50_000) for number in range(10)}
    packed = bytearray(pack(write_tar(tmp_path / "plain.tar", files).read_bytes()))
    (tmp_path / "x.tar").write_bytes(packed)
    assert len(open_archive(tmp_path / "x.tar").names()) == 10
    packed[len(packed) // 2 : len(packed) // 2 + 200] = bytes(200)
    (tmp_path / "x.tar").write_bytes(packed)
    with pytest.raises(BadDataError, match="x.tar is no intact archive"):
        open_archive(tmp_path / "x.tar")


def test_a_member_is_read_and_its_damage_is_a_reason(tmp_path: Path) -> None:
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


def test_a_zip_of_64_bits_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, archive.open("train/A/1.jpg", "w", force_zip64=True) as f:
        f.write(b"one")
    container = open_archive(tmp_path / "x.zip")
    assert [read() for _, read in container.load(container.names())] == [b"one"]


def test_a_name_that_claims_utf8_and_is_not_is_damage(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.zip", {"train/A/é.jpg": b"x"})
    path.write_bytes(path.read_bytes().replace("é".encode(), b"\xff\xfe"))
    with pytest.raises(BadDataError, match="x.zip is no intact archive"):
        open_archive(path)


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_a_failing_disk_is_not_a_damaged_image(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was rejected stays rejected; so it must not be for what passes."""

    def failing(*args: object, **more: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    container = open_archive((write_zip if name == "x.zip" else write_tar)(tmp_path / name, tree()))
    monkeypatch.setattr(zip_file.ZipArchive, "_read_at", failing)
    monkeypatch.setattr(tar_file, "_read_member", failing)
    with pytest.raises(TransientError, match=r"The disk failed at .*/x\.(zip|tar) \(Input/output error\)"):
        [read() for _, read in container.load(container.names())]


def test_a_loose_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_FILE_BYTES", 1000)
    folder = write_folder(tmp_path / "loose", {"train/A/1.jpg": bytes(1001), "train/A/2.jpg": bytes(1000)})
    container = data_source.find(str(folder), tmp_path, StorageOptions(), never).open()
    (_, first), (_, second) = container.load(sorted(container.names()))
    assert len(second()) == 1000
    with pytest.raises(Rejected, match="1001 bytes are more than 1000"):
        first()


def icon(content: bytes) -> bytes:
    """An icon that claims 16x16 pixels of whatever its content is."""
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(content), 22) + content


def test_formats_that_lie_of_their_size_or_start_programs_are_no_images() -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    for data in (icon(buffer.getvalue()), postscript):
        with pytest.raises(Rejected, match="not a image of a format that is known"):
            decode(data, 32)


def test_large_images_are_unfolded_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    large, small = (encoded(1, (width, 6000), "PNG") for width in (6000, 600))
    unfolding: list[bool] = []
    original = decoding._squash

    def looking(pixels: np.ndarray, side: int) -> np.ndarray:
        unfolding.append(decoding._one_large.locked())
        return original(pixels, side)

    monkeypatch.setattr(decoding, "_squash", looking)
    decode(large, 32)
    decode(small, 32)
    assert unfolding == [True, False]
