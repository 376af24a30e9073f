"""Limits and failures that all archive readers share."""

import errno
from pathlib import Path

import pytest

from inat_job.errors import BadDataError, TransientError
from inat_job.ingest import container, data_source, tar_file, zip_file
from inat_job.ingest.archives import open_archive
from inat_job.ingest.decode import Rejected
from inat_job.signals import never
from inat_job.storage import StorageOptions
from tests.harness.made_images import tree, write_folder, write_tar, write_zip


def test_too_many_members_are_bad_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_MEMBERS", 20)
    for write, name in ((write_zip, "x.zip"), (write_tar, "x.tar.gz")):
        with pytest.raises(BadDataError, match=r"has \d+ members or more, and at most 20 fit into memory"):
            open_archive(write(tmp_path / name, tree()))


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_disk_failure_is_not_a_rejected_image(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rejection is final, so a failure that may pass must not cause one."""

    def failing(*args: object, **more: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    archive = open_archive((write_zip if name == "x.zip" else write_tar)(tmp_path / name, tree()))
    monkeypatch.setattr(zip_file.ZipArchive, "_read_at", failing)
    monkeypatch.setattr(tar_file, "_read_member", failing)
    with pytest.raises(TransientError, match=r"The disk failed at .*/x\.(zip|tar) \(Input/output error\)"):
        [read() for _, read in archive.load(archive.names())]


def test_large_loose_file_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(container, "MAX_FILE_BYTES", 1000)
    folder = write_folder(tmp_path / "loose", {"train/A/1.jpg": bytes(1001), "train/A/2.jpg": bytes(1000)})
    files = data_source.find(str(folder), tmp_path, StorageOptions(), never).open()
    (_, first), (_, second) = files.load(sorted(files.names()))
    assert len(second()) == 1000
    with pytest.raises(Rejected, match="1001 bytes are more than 1000"):
        first()
