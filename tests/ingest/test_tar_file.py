"""Tars made to harm, damaged tars, and compressed tars."""

import bz2
import gzip
import lzma
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from inat_job.errors import BadDataError
from inat_job.ingest import container
from inat_job.ingest.archives import open_archive
from tests.harness.made_images import write_tar

HALF_GIB = 2**29


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, pytest.param(tarfile.XHDTYPE, marks=pytest.mark.soak)])
def test_endless_header_is_bad_data(
    kind: bytes, tmp_path: Path, read_in_child: Callable[[Path], tuple[int, str]]
) -> None:
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = kind, HALF_GIB
    with gzip.open(tmp_path / "x.tar.gz", "wb", 1) as file:
        file.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(HALF_GIB // 2**20):
            file.write(bytes(2**20))
    grown_kib, message = read_in_child(tmp_path / "x.tar.gz")
    assert "a header says that it has more than 1048576 bytes" in message
    assert grown_kib < 50_000


@pytest.mark.parametrize("members", [0, 1])
def test_many_headers_are_refused(
    members: int, tmp_path: Path, read_in_child: Callable[[Path], tuple[int, str]]
) -> None:
    """Global headers are kept, before the first member or between several."""
    with gzip.open(tmp_path / "x.tar.gz", "wb", 1) as file:
        for number in range(200):
            file.write(tarfile.TarInfo().create_pax_global_header({f"k{number}": "v" * 900_000}))
            file.write(tarfile.TarInfo(f"{number}.jpg").tobuf() * members)
    grown_kib, message = read_in_child(tmp_path / "x.tar.gz")
    assert "has too many headers: more than 1048576 bytes between two members" in message
    assert grown_kib < 50_000


def test_many_empty_members_are_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "ALWAYS_ALLOWED_BYTES", 2**20)
    monkeypatch.setattr(container, "MAX_UNFOLDING", 10)
    with pytest.raises(BadDataError, match="is a zip bomb"):
        open_archive(write_tar(tmp_path / "x.tar.gz", {f"train/A/{number}.jpg": b"" for number in range(10_000)}))


@pytest.mark.parametrize("at", [1, 5, 9])
def test_damaged_header_is_bad_data(at: int, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"train/A/{number}.jpg": bytes(100) for number in range(10)})
    data = bytearray(path.read_bytes())
    data[at * 1024 + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadDataError, match=f"the header after its {at} members is damaged"):
        open_archive(path)


def test_end_without_zeros(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"train/A/{number}.jpg": bytes(100) for number in range(10)})
    path.write_bytes(path.read_bytes()[: 10 * 1024])
    assert len(open_archive(path).names()) == 10


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_damaged_compression_is_bad_data(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    files = {f"train/A/{number}.jpg": os.urandom(50_000) for number in range(10)}
    packed = bytearray(pack(write_tar(tmp_path / "plain.tar", files).read_bytes()))
    (tmp_path / "x.tar").write_bytes(packed)
    assert len(open_archive(tmp_path / "x.tar").names()) == 10
    packed[len(packed) // 2 : len(packed) // 2 + 200] = bytes(200)
    (tmp_path / "x.tar").write_bytes(packed)
    with pytest.raises(BadDataError, match="x.tar is not an intact archive"):
        open_archive(tmp_path / "x.tar")
