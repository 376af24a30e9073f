"""`prepare --prune` through the command line, beside a job that trains."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inat_job import events
from inat_job.command_options import PrepareOptions
from inat_job.commands.prepare import prune
from inat_job.errors import ConflictError, UsageError
from inat_job.ingest import cache
from inat_job.signals import never
from tests.harness.made_images import tree, write_zip

ROOT = Path(__file__).parents[2]
ENTRY = [sys.executable, str(ROOT / "entrypoint.py")]

pytestmark = pytest.mark.filterwarnings("ignore")

Prune = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def pruned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Prune:
    """The event of each cache, and the last one."""

    def one(age: str = "list") -> list[dict[str, Any]]:
        capsys.readouterr()
        prune(tmp_path / "cache", PrepareOptions(age).unused_s, never)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return one


def grow_old(folder: Path, days: float) -> None:
    then = time.time() - 86400 * days
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (then, then))


def prepare(place: Path, archive: Path) -> None:
    """In a process of its own, whose locks end with it."""
    words = ["prepare", "--data", str(archive), "--image-size", "32"]
    subprocess.run([*ENTRY, *words], cwd=place, capture_output=True, check=True)


@pytest.mark.soak
def test_prune_deletes_old_caches_only(archive: Path, pruned: Prune, tmp_path: Path) -> None:
    prepare(tmp_path, archive)
    prepare(tmp_path, write_zip(tmp_path / "y.zip", tree(train=20, test=6)))
    first, second, done = pruned()
    assert (done["event"], done["freed_bytes"]) == ("done", 0)
    assert "use --prune 30d" in done["message"]
    assert {first["kind"], second["kind"]} == {"images"}
    assert (first["source"].endswith("x.zip"), first["side"], first["images"]) == (True, 64, 75)
    assert first["bytes"] > 75 * 64 * 64 * 3
    old = Path(first["folder"])
    grow_old(old, days=31)
    first, second, done = pruned("30d")
    assert (first["folder"], first["state"], second["state"]) == (str(old), "deleted", "unused")
    assert first["unused_s"] == pytest.approx(31 * 86400, abs=100)
    assert done["freed_bytes"] == first["bytes"]
    assert not old.exists()
    (left,) = pruned()[:-1]
    assert left["folder"] == second["folder"]
    prepare(tmp_path, archive)
    assert old.exists()


@pytest.mark.soak
def test_use_renews_a_cache(archive: Path, pruned: Prune, tmp_path: Path) -> None:
    prepare(tmp_path, archive)
    (folder,) = (each.folder for each in cache.list_entries(tmp_path / "cache"))
    grow_old(folder, days=31)
    prepare(tmp_path, archive)
    (lines, done) = pruned("30d")
    assert (lines["state"], lines["unused_s"] < 60) == ("unused", True)
    assert " in 1 folder, of which 0 are deleted: " in done["message"]
    (_, done) = pruned("0s")
    assert " in 1 folder, of which 1 is deleted: " in done["message"]


@pytest.mark.soak
def test_cache_of_a_running_job_is_kept(tmp_path: Path) -> None:
    words = "parta --data demo: --image-size 32 --filters 4 --epochs 2000 --batch-size 8 --wandb off --run-id r".split()
    job = subprocess.Popen([*ENTRY, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert job.stdout
        next(line for line in job.stdout if '"event": "data"' in line)
        assert states(tmp_path) == ["in use"]
        next(line for line in job.stdout if '"event": "epoch"' in line)
        assert states(tmp_path) == ["in use"]
        next(line for line in job.stdout if '"event": "epoch"' in line)
    finally:
        job.kill()
        job.communicate()
    assert states(tmp_path, "--prune") == ["unused"], "without an age nothing is deleted"
    assert states(tmp_path) == ["deleted"]
    assert states(tmp_path) == []


def states(place: Path, *words: str) -> list[str]:
    """The state of the prepared images, by default after `--prune 0s`."""
    command = [*ENTRY, "prepare", *(words or ("--prune", "0s"))]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return [each["state"] for each in lines if each.get("kind") == "images"]


def test_spooled_run_is_kept(pruned: Prune, tmp_path: Path) -> None:
    path = tmp_path / "cache" / "spool" / "0123" / "r" / "checkpoints" / "6.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"x")
    grow_old(tmp_path / "cache", days=1000)
    lines, _ = pruned("0s")
    assert (lines["kind"], lines["name"], lines["state"]) == ("run", "r", "kept")
    assert path.exists()


def test_missing_cache_folder(pruned: Prune, tmp_path: Path) -> None:
    (done,) = pruned("0s")
    assert "holds 0.0 MB in 0 folders" in done["message"]
    (tmp_path / "cache").write_text("")
    (done,) = pruned("0s")
    assert "0 folders" in done["message"]


@pytest.mark.parametrize("age", ["soon", "-3", "1y", "nan", "30", "0"])
def test_bad_age(age: str) -> None:
    with pytest.raises(UsageError, match="--prune is"):
        _ = PrepareOptions(age).unused_s


@pytest.mark.skipif(os.geteuid() == 0, reason="root may delete everything")
def test_undeletable_cache(archive: Path, pruned: Prune, tmp_path: Path) -> None:
    prepare(tmp_path, archive)
    (tmp_path / "cache" / "prepared").chmod(0o500)
    with pytest.raises(ConflictError, match="cannot be written"):
        pruned("0s")


@pytest.mark.soak
def test_a_person_gets_a_table(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(tmp_path, archive)
    capsys.readouterr()
    events.configure(text=True)
    prune(tmp_path / "cache", None, never)
    out = capsys.readouterr().out
    assert out.startswith("images       0.")
    assert "x.zip" in out
    assert "unused" in out
