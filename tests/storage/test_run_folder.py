"""A run's folder, local and in S3."""

from pathlib import Path

import pytest

from inat_job.errors import BadDataError
from inat_job.storage import StorageOptions
from inat_job.storage.run_folder import RunFolder, run_uri
from tests.harness.run_folders import open_run_folder


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    output = str(tmp_path / "out") if request.param == "local" else f"s3://{request.getfixturevalue('s3_bucket')}/out"
    return open_run_folder(output, "r", StorageOptions(), tmp_path / "spool")


def test_published_files_can_be_fetched(folder: RunFolder, tmp_path: Path) -> None:
    folder.write_json("config.json", {"a": 1})
    folder.write("plots/x.png", b"png")
    folder.write("checkpoints/1.ckpt", b"left out")
    folder.write("report.json", "{}")
    folder.publish_all(last="report.json", leave_out=["checkpoints"])
    assert folder.read_json("config.json") == {"a": 1}
    keys = {entry.key for entry in folder.store.list()}
    assert keys >= {"config.json", "plots/x.png", "report.json"}
    assert ("checkpoints/1.ckpt" in keys) != folder.remote
    fetched = RunFolder(folder.store, tmp_path / "elsewhere").fetch("plots/x.png")
    assert fetched is not None
    assert fetched.read_bytes() == b"png"


def test_missing_and_damaged_json(folder: RunFolder) -> None:
    assert folder.read_json("config.json") is None
    assert folder.fetch("metrics.jsonl") is None
    folder.store.put("config.json", b"{")
    with pytest.raises(BadDataError, match="damaged"):
        folder.read_json("config.json")


def test_clear_deletes_everything(folder: RunFolder) -> None:
    folder.write("a", b"1")
    folder.publish_all(last="a", leave_out=[])
    folder.clear(keep="attempts/1.json", emptied="report.json")
    assert list(folder.store.list()) == []
    assert not folder.local.exists() or not list(folder.local.iterdir())


def test_local_copies_are_written_without_asking_the_store(folder: RunFolder) -> None:
    asked: list[None] = []
    folder.fence(1, lambda: asked.append(None))
    folder.write("checkpoints/1.ckpt", b"x")
    assert len(asked) == (0 if folder.remote else 1)
    folder.publish("checkpoints/1.ckpt")
    assert len(asked) == 1
    folder.clear(keep="attempts/1.json", emptied="report.json")
    assert not (folder.local / "checkpoints/1.ckpt").exists()
    assert len(asked) == 2  # once for the object, or for the local folder


def test_has_local_compares_the_field(folder: RunFolder) -> None:
    assert not folder.has_local("config.json", {"id": 1}, "id")
    folder.write_json("config.json", {"id": 1})
    assert folder.has_local("config.json", {"id": 1}, "id")
    assert not folder.has_local("config.json", {"id": 2}, "id")
    assert not folder.has_local("config.json", {}, "id")
    assert not folder.has_local("config.json", {}, "missing")
    folder.write("config.json", "{")
    assert not folder.has_local("config.json", {"id": 1}, "id")


def test_equal_run_ids_have_separate_spools(tmp_path: Path) -> None:
    one, two = (open_run_folder(f"s3://bucket-{each}", "r", StorageOptions(), tmp_path) for each in "12")
    assert one.local != two.local


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("r", "s3://b/runs/r"),
        ("r/", "s3://b/runs/r/"),
        ("here", "./here"),
        (".", "./."),
        ("a/r", "a/r"),
        ("/r", "/r"),
        ("s3://c/r", "s3://c/r"),
    ],
)
def test_run_is_named_by_id_path_or_uri(name: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "model.json").touch()
    monkeypatch.chdir(tmp_path)
    assert run_uri(name, "s3://b/runs/", "config.json", "model.json") == uri
    assert run_uri("here", "runs") == "runs/here"
