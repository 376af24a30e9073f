"""Decoding all images: an interrupted job is resumed, and a full disk is one message."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from inat_job.data import pixel_file
from inat_job.data.cache_index import PIXELS, Cache, CacheIndex
from inat_job.data.pixel_file import PixelFile
from inat_job.errors import ConflictError, Preempted
from inat_job.ingest import build_cache, data_source
from inat_job.ingest.decode_all import ROWS
from inat_job.signals import never
from inat_job.storage import StorageOptions
from tests.harness.made_images import tree, write_zip

ROOT = Path(__file__).parents[2]
COUNT = 42


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return write_zip(tmp_path / "x.zip", tree())


def prepared(archive: Path, cache_dir: Path, stop: Callable[[], bool] = never) -> Cache:
    source = data_source.find(str(archive), cache_dir, StorageOptions(), never)
    return build_cache.prepare(source, cache_dir, 32, 0.05, stop)


def stop_after(checks: int) -> Callable[[], bool]:
    """A stop that turns true after so many checks."""
    left = iter(range(checks))
    return lambda: next(left, None) is None


def unfinished(cache_dir: Path) -> Path:
    [folder] = (cache_dir / "prepared").glob("*.tmp")
    return folder


def content(cache: Cache) -> tuple[bytes, bytes]:
    assert sorted(path.name for path in cache.folder.iterdir()) == ["index.json", PIXELS]
    return (cache.folder / PIXELS).read_bytes(), (cache.folder / "index.json").read_bytes()


class KilledError(BaseException):
    """Stands for a kill: no code catches it."""


@pytest.mark.parametrize("checks", [6, 15, 34])
def test_resume_decodes_nothing_twice(archive: Path, tmp_path: Path, decoded: list[int], checks: int) -> None:
    intact = content(prepared(archive, tmp_path / "intact"))
    assert len(decoded) == COUNT
    with pytest.raises(Preempted):
        prepared(archive, tmp_path / "cache", stop_after(checks))
    lines = (unfinished(tmp_path / "cache") / ROWS).read_text().splitlines()
    decoded.clear()
    assert content(prepared(archive, tmp_path / "cache")) == intact
    assert len(decoded) == COUNT - (len(lines) - 1) < COUNT


def has_rows(cache_dir: Path) -> bool:
    """Whether a draft of a cache has some hundred rows."""
    with contextlib.suppress(FileNotFoundError):  # it has been published since
        return any(path.stat().st_size > 4000 for path in cache_dir.glob(f"prepared/*.tmp/{ROWS}"))
    return False


@pytest.mark.soak
def test_resume_after_sigkill(tmp_path: Path, decoded: list[int]) -> None:
    archive = write_zip(tmp_path / "x.zip", tree(train=400))
    cache_dir = tmp_path / "cache"
    command = ["prepare", "--data", str(archive), "--cache-dir", str(cache_dir), "--image-size", "32"]
    child = subprocess.Popen([sys.executable, str(ROOT / "entrypoint.py"), *command], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 60
        while not has_rows(cache_dir):
            assert time.monotonic() < until
            assert child.poll() is None
            time.sleep(0.005)
    finally:
        child.kill()
        child.wait()
    cache = prepared(archive, cache_dir)
    assert 0 < len(decoded) < 1212
    assert content(cache) == content(prepared(archive, tmp_path / "intact"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / ROWS).write_text('another list of images\n[0, "x", [1, 1], null, 0]\n'),
        lambda folder: (folder / ROWS).write_bytes((folder / ROWS).read_bytes()[:-7] + b"\xff\n[]\n[[[[\n9"),
        lambda folder: (folder / PIXELS).write_bytes(bytes(1000)),
        lambda folder: (folder / PIXELS).unlink(),
        lambda folder: (folder / ROWS).unlink(),
        lambda folder: (folder / "odd").touch(),
    ],
)
def test_damaged_draft_is_decoded_again(
    archive: Path, tmp_path: Path, damage: Callable[[Path], None], decoded: list[int]
) -> None:
    with pytest.raises(Preempted):
        prepared(archive, tmp_path / "cache", stop_after(30))
    damage(unfinished(tmp_path / "cache"))
    cache = prepared(archive, tmp_path / "cache")
    (cache.folder / "odd").unlink(missing_ok=True)
    assert content(cache) == content(prepared(archive, tmp_path / "intact"))


def test_row_with_damaged_pixels_is_decoded_again(archive: Path, tmp_path: Path, decoded: list[int]) -> None:
    with pytest.raises(Preempted):
        prepared(archive, tmp_path / "cache", stop_after(30))
    folder = unfinished(tmp_path / "cache")
    rows = [json.loads(line.partition(" ")[2])[0] for line in (folder / ROWS).read_text().splitlines()[1:]]
    with (folder / PIXELS).open("r+b") as file:
        file.seek(rows[3] * 64 * 64 * 3 + 5)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    decoded.clear()
    assert content(prepared(archive, tmp_path / "cache")) == content(prepared(archive, tmp_path / "intact"))
    assert len(decoded) == (COUNT - len(rows) + 1) + COUNT


@pytest.mark.parametrize("field", [1, 2])
def test_damaged_journal_line_is_decoded_again(archive: Path, tmp_path: Path, field: int) -> None:
    """A flipped digit of a hash would change the split."""
    with pytest.raises(Preempted):
        prepared(archive, tmp_path / "cache", stop_after(30))
    file = unfinished(tmp_path / "cache") / ROWS
    lines = file.read_text().splitlines()
    crc, _, text = lines[5].partition(" ")
    fields = json.loads(text)
    fields[field] = "0" * 64 if field == 1 else [4, 3]
    file.write_text("\n".join([*lines[:5], f"{crc} {json.dumps(fields)}", *lines[6:], ""]))
    assert content(prepared(archive, tmp_path / "cache")) == content(prepared(archive, tmp_path / "intact"))


def test_kill_during_journal_rewrite(
    archive: Path, tmp_path: Path, decoded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Preempted):
        prepared(archive, tmp_path / "cache", stop_after(30))
    done, original = len(decoded), Path.replace

    def killed(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise KilledError
        return original(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KilledError):
            prepared(archive, tmp_path / "cache")
    decoded.clear()
    assert content(prepared(archive, tmp_path / "cache")) == content(prepared(archive, tmp_path / "intact"))
    assert len(decoded) == (COUNT - done) + COUNT


def test_resume_keeps_rejected_images(tmp_path: Path) -> None:
    files = tree()
    files["some/where/train/Ants/00.jpg"] = b"no image"
    archive = write_zip(tmp_path / "x.zip", files)
    with pytest.raises(Preempted):
        prepared(archive, tmp_path / "cache", stop_after(40))
    cache = prepared(archive, tmp_path / "cache")
    assert [each["id"] for each in cache.index.rejected] == ["train/Ants/00.jpg"]
    assert content(cache) == content(prepared(archive, tmp_path / "intact"))


@pytest.mark.parametrize(
    "place",
    ["PixelFile.keep", "pixel_file.digest", "_check_rejected", "CacheIndex.save", "Path.unlink", "Path.replace"],
)
@pytest.mark.parametrize("late", [False, True])
def test_kill_at_any_point_of_publishing(
    place: str, late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_zip(tmp_path / "x.zip", {**tree(), "some/where/train/Ants/00.jpg": b"no image"})
    intact = content(prepared(archive, tmp_path / "intact"))
    source = data_source.find(str(archive), tmp_path / "cache", StorageOptions(), never)
    owner = {"CacheIndex": CacheIndex, "Path": Path, "PixelFile": PixelFile, "pixel_file": pixel_file}.get(
        place.split(".")[0], build_cache
    )
    name = place.rpartition(".")[2]
    original = getattr(owner, name)

    def killed(*args: Any, **more: Any) -> Any:
        if late:
            original(*args, **more)
        raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, killed)
        with pytest.raises(KilledError):
            build_cache.prepare(source, tmp_path / "cache", 32, 0.05, never)
    assert content(prepared(archive, tmp_path / "cache")) == intact


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_is_conflict_not_sigbus(small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_zip(tmp_path / "x.zip", tree(train=100))  # 312 squares of 64 pixels are 3.8 MB
    with pytest.raises(ConflictError, match="--cache-dir .* has 1 MB free, and the decoded images need 4 MB"):
        prepared(archive, small_disk)
    monkeypatch.setattr(build_cache, "_check_disk", lambda *_: None)  # as if another job had taken the space since
    with pytest.raises(ConflictError, match=r"--cache-dir .* cannot be written \(No space left on device\)"):
        prepared(archive, small_disk)
    assert not list(small_disk.glob(f"prepared/*/{PIXELS}"))
    assert shutil.disk_usage(small_disk).free > 900_000
