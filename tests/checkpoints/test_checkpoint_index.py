"""Which checkpoint is loaded: the newest or best intact one, downloaded if necessary, whatever is damaged."""

import hashlib
from pathlib import Path
from typing import Any

import pytest

from inat_job.checkpoints.checkpoint_index import CheckpointIndex
from inat_job.checkpoints.manifest import Manifest, to_json
from inat_job.errors import BadDataError
from inat_job.storage import StorageOptions
from inat_job.storage.run_folder import RunFolder
from tests.checkpoints.unreliable_store import manifest
from tests.harness.run_folders import open_run_folder


@pytest.fixture(params=["local", "s3"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    output = str(tmp_path / "runs") if request.param == "local" else f"s3://{request.getfixturevalue('s3_bucket')}"
    return open_run_folder(output, "r", StorageOptions(), tmp_path / "spool")


def store(run: RunFolder, step: int, accuracy: float | None = None) -> Manifest:
    """Store a sound checkpoint, whose content is its step."""
    content = b"%d" % step
    stored = manifest(step, accuracy, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    run.store.put(stored.name, content)
    run.store.put(stored.manifest_name, to_json(stored).encode())
    return stored


def damage(run: RunFolder, step: int) -> None:
    """Damage a checkpoint in the store, of which this machine has no copy."""
    run.path(f"checkpoints/{step}.ckpt").unlink(missing_ok=True)
    run.store.put(f"checkpoints/{step}.ckpt", b"damaged")


def index_of(run: RunFolder) -> CheckpointIndex:
    return CheckpointIndex(run).discover()


def test_latest_is_the_newest_intact_checkpoint(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for step in (6, 9, 12):
        store(run, step)
    damage(run, 12)
    index = index_of(run)
    found = index.load_newest_intact()
    assert found
    assert (found[0].step, found[1].read_bytes()) == (9, b"9")
    assert "12.ckpt is missing or damaged and is skipped" in capsys.readouterr().out
    assert [each.step for each in index.stored] == [6, 9]


def test_latest_of_a_run_without_checkpoints_is_none(run: RunFolder) -> None:
    assert index_of(run).load_newest_intact() is None


def test_latest_refuses_to_start_again_if_all_checkpoints_are_damaged(run: RunFolder) -> None:
    store(run, 6)
    damage(run, 6)
    with pytest.raises(BadDataError, match="holds 1 checkpoints and none is intact.*--resume never --force"):
        index_of(run).load_newest_intact()


def test_best_falls_back_to_the_newest_intact_checkpoint(run: RunFolder) -> None:
    for step, accuracy in ((6, 0.9), (9, 0.5), (12, None)):
        store(run, step, accuracy)
    assert index_of(run).best()[0].step == 6
    damage(run, 6)
    assert index_of(run).best()[0].step == 12
    with pytest.raises(BadDataError, match="holds no intact checkpoint: train it first"):
        CheckpointIndex(run).best()


def test_at_step_names_the_steps_that_exist(run: RunFolder) -> None:
    store(run, 6)
    assert index_of(run).at_step(6)[1].read_bytes() == b"6"
    with pytest.raises(BadDataError, match="no intact checkpoint of step 7: its steps are 6"):
        index_of(run).at_step(7)


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_damaged_manifest_is_ignored_with_a_warning(
    run: RunFolder, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store(run, 6)
    run.store.put("checkpoints/9.json", text.encode())
    assert [each.step for each in index_of(run).stored] == [6]
    assert "9.json is damaged" in capsys.readouterr().out


def test_manifest_under_another_steps_name_is_ignored(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.store.put("checkpoints/9.json", to_json(store(run, 6)).encode())
    assert [each.step for each in index_of(run).stored] == [6]
    assert "9.json is of step 6 and is ignored" in capsys.readouterr().out


def test_checkpoint_without_a_manifest_is_an_orphan(run: RunFolder) -> None:
    store(run, 6)
    run.store.put("checkpoints/9.ckpt", b"no manifest")
    index = index_of(run)
    assert (index.orphans, [each.step for each in index.known]) == ({9}, [6])


def test_damaged_local_copy_is_downloaded_again(s3_bucket: str, tmp_path: Path) -> None:
    run = open_run_folder(f"s3://{s3_bucket}", "r", StorageOptions(), tmp_path / "spool")
    store(run, 6)
    run.write("checkpoints/6.ckpt", b"damaged")
    assert index_of(run).at_step(6)[1].read_bytes() == b"6"


def test_damaged_download_is_tried_again(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_run_folder(f"s3://{s3_bucket}", "r", StorageOptions(), tmp_path / "spool")
    store(run, 6)
    get, failures = run.store.get, [BadDataError("a wrong hash"), BadDataError("a wrong hash")]

    def get_damaged_first(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return get(*args, **options)

    monkeypatch.setattr(run.store, "get", get_damaged_first)
    assert index_of(run).at_step(6)[1].read_bytes() == b"6"
    assert not failures


def test_waiting_manifest_replaces_the_stored_one_until_it_is_stored(run: RunFolder) -> None:
    first = store(run, 6)
    index = index_of(run)
    validated = manifest(6, 0.5, sha256=first.sha256, size=first.size)
    index.mark_waiting(validated)
    assert (index.stored, index.known, index.newest()) == ([first], [validated], validated)
    index.mark_stored(first)
    assert index.waiting == [validated]
    index.mark_stored(validated)
    assert (index.stored, index.waiting) == ([validated], [])
