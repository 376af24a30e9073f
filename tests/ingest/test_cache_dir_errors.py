"""A cache folder that is full, read only or forbidden: one message and exit code 78, whichever write fails."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from inat_job.errors import ConflictError
from inat_job.ingest import build_cache, data_source
from inat_job.signals import never
from inat_job.storage import StorageOptions, open_store
from tests.harness.made_images import tree, write_folder, write_zip

Mount = Callable[[str], None]


@pytest.fixture
def cache_dir(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


@pytest.fixture
def mount(cache_dir: Path) -> Iterator[Mount]:
    """Mounts a tmpfs with the given options over the cache folder."""
    mounted = 0

    def mounting(options: str) -> None:
        nonlocal mounted
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(cache_dir)]
        if subprocess.run(command, capture_output=True).returncode:
            pytest.skip("needs the right to mount")
        mounted += 1

    yield mounting
    for _ in range(mounted):
        subprocess.run(["umount", "--lazy", str(cache_dir)], check=True)  # files of the failed job may still be mapped


@pytest.fixture(params=[pytest.param("demo", marks=pytest.mark.soak), "file", "folder", "s3"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, s3_bucket: str) -> str:
    path = write_zip(tmp_path / "x.zip", tree())
    open_store(f"s3://{s3_bucket}").put("x.zip", path)
    folder = write_folder(tmp_path / "loose", tree())
    return {"demo": "demo:", "file": str(path), "folder": str(folder), "s3": f"s3://{s3_bucket}/x.zip"}[request.param]


def prepared(uri: str, cache_dir: Path) -> int:
    source = data_source.find(uri, cache_dir, StorageOptions(), never)
    return len(build_cache.prepare(source, cache_dir, 32, 0.01, never).index.ids)


def conflict_message(work: Callable[[], object]) -> str:
    """The message of a ConflictError, or nothing; any other error fails the test."""
    try:
        work()
    except ConflictError as error:
        return str(error)
    return ""


def test_full_disk_at_any_point_is_conflict(
    uri: str, cache_dir: Path, mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each disk size fails at another write: 42 squares of 64 pixels take 516 kB, the archive 42 kB."""
    monkeypatch.setattr(build_cache, "_check_disk", lambda *_: None)  # as if another job had taken the space since
    for size in (4, 12, 20, 48, 100, 300, 508, 512, 516, 520, 524, 560):
        mount(f"size={size}k")
        message = conflict_message(lambda: prepared(uri, cache_dir))
        assert size > 508 or message
        assert not message or (str(cache_dir) in message and "No space left" in message and "free some" in message)
    mount("size=32m")
    assert prepared(uri, cache_dir) >= 42


def test_full_disk_is_resumed_once_there_is_space(
    cache_dir: Path, tmp_path: Path, mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_zip(tmp_path / "x.zip", tree())
    mount("size=524k")
    (cache_dir / "ballast").write_bytes(bytes(100_000))
    with pytest.raises(ConflictError, match="--cache-dir"):
        prepared(str(path), cache_dir)
    (cache_dir / "ballast").unlink()
    subprocess.run(["mount", "-o", "remount,size=4m", str(cache_dir)], check=True)
    assert prepared(str(path), cache_dir) == 42


def test_read_only_cache_dir_is_conflict(uri: str, cache_dir: Path, mount: Mount) -> None:
    mount("size=1m,ro")
    with pytest.raises(ConflictError, match=r"--cache-dir .*/cache cannot be written \(Read-only file system\)"):
        prepared(uri, cache_dir)


@pytest.fixture
def nobody() -> Iterator[None]:
    """The rights of the user nobody, who may not even enter a folder of root's."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    yield
    os.seteuid(0)


def test_forbidden_cache_dir_is_conflict(
    uri: str, cache_dir: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if os.geteuid() == 0 and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o011)
    cache_dir.chmod(0o000)
    request.getfixturevalue("nobody")
    with pytest.raises(ConflictError, match=r"--cache-dir .*/cache cannot be written \(Permission denied\)"):
        prepared(uri, cache_dir)


def test_file_as_cache_dir_is_conflict(uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConflictError, match="--cache-dir .*/file cannot be written"):
        prepared(uri, tmp_path / "file")
