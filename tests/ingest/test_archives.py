"""Names, links and repeated names in archives."""

import io
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from inat_job.ingest.archives import Container, open_archive
from inat_job.ingest.decode import Rejected


def tar_of(path: Path, *members: tuple[str, bytes, str, str]) -> Path:
    """A tar of members (name, type, link name, content)."""
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, kind, target, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, target, len(content)
            archive.addfile(member, io.BytesIO(content.encode()))
    return path


def contents(container: Container) -> dict[str, str]:
    """The contents of each name, or the reason for its rejection."""
    found = {}
    for name, read in container.load(container.names()):
        assert name not in found
        try:
            found[name] = read().decode()
        except Rejected as reason:
            found[name] = f"rejected: {reason}"
    assert sorted(found) == sorted(container.names())
    return found


@pytest.mark.parametrize("name", ["x.tar", "x.tgz"])
def test_tar_hard_link_reads_its_target(name: str, tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / name,
        ("./a/1.jpg", tarfile.REGTYPE, "", "one"),
        ("./b/2.jpg", tarfile.LNKTYPE, "./a/1.jpg", ""),
        ("./a/3.jpg", tarfile.REGTYPE, "", "three"),
        ("./c/4.jpg", tarfile.LNKTYPE, "b/2.jpg", ""),
    )
    assert contents(open_archive(path)) == {"a/1.jpg": "one", "b/2.jpg": "one", "a/3.jpg": "three", "c/4.jpg": "one"}


def test_tar_other_links_are_rejected(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "x.tar",
        ("a/1.jpg", tarfile.REGTYPE, "", "one"),
        ("a/2.jpg", tarfile.SYMTYPE, "1.jpg", ""),
        ("a/3.jpg", tarfile.LNKTYPE, "elsewhere", ""),
        ("a/pipe", tarfile.FIFOTYPE, "", ""),
    )
    assert contents(open_archive(path)) == {
        "a/1.jpg": "one",
        "a/2.jpg": "rejected: a link, not an image",
        "a/3.jpg": "rejected: a hard link to elsewhere, which does not precede it",
    }


def test_tar_last_of_equal_names_counts(tmp_path: Path) -> None:
    path = tar_of(
        tmp_path / "x.tar",
        ("a/1.jpg", tarfile.REGTYPE, "", "old"),
        ("a/2.jpg", tarfile.LNKTYPE, "a/1.jpg", ""),
        ("a/3.jpg", tarfile.SYMTYPE, "1.jpg", ""),
        ("a/1.jpg", tarfile.REGTYPE, "", "new"),
        ("a/3.jpg", tarfile.REGTYPE, "", "three"),
    )
    assert contents(open_archive(path)) == {"a/1.jpg": "new", "a/2.jpg": "old", "a/3.jpg": "three"}


def test_zip_link_is_rejected(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/1.jpg", "one")
        link = zipfile.ZipInfo("a/2.jpg")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "1.jpg")
    assert contents(open_archive(tmp_path / "x.zip")) == {
        "a/1.jpg": "one",
        "a/2.jpg": "rejected: a link, not an image",
    }


@pytest.mark.parametrize("name", ["./train/a/1.jpg", "train/./a//1.jpg", "train\\a\\1.jpg", "/train/a/1.jpg"])
def test_member_names_are_normalised(name: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("train\\a\\", "")
        archive.writestr(name, "one")
    tar_of(tmp_path / "x.tar", ("train/a", tarfile.DIRTYPE, "", ""), (name, tarfile.REGTYPE, "", "one"))
    for kind in ("zip", "tar"):
        assert contents(open_archive(tmp_path / f"x.{kind}")) == {"train/a/1.jpg": "one"}
