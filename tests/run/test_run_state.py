"""The state of a run folder as a command finds it, before any work and without torch."""

import json
from pathlib import Path
from typing import Any

import pytest

from inat_job.configuration import configure
from inat_job.errors import BadDataError, ConflictError
from inat_job.run.run_state import RunState, decide_run_state, delete_run, open_run, read_config, run_config
from inat_job.settings import Settings
from inat_job.storage import StorageOptions
from inat_job.storage.run_folder import RunFolder
from tests.harness.run_folders import open_run_folder


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> RunFolder:
    output = str(tmp_path / "runs") if request.param == "local" else f"s3://{request.getfixturevalue('s3_bucket')}"
    return open_run_folder(output, "r", StorageOptions(), tmp_path / "spool")


def settings(**changes: str) -> Settings:
    flags = {name.replace("__", "."): value for name, value in changes.items()}
    return configure("a", {"run.run_id": "r", **flags}, [], None).settings


def put(folder: RunFolder, name: str, value: Any) -> None:
    folder.store.put(name, (value if isinstance(value, str) else json.dumps(value)).encode())


FORCED = {"run__resume": "never", "run__force": "true"}
OURS = json.loads(json.dumps(run_config(settings(), {}, command="train")))


def test_empty_folder_is_new(folder: RunFolder) -> None:
    for changes in ({}, FORCED, {"run__resume": "never"}):
        assert decide_run_state(folder, settings(**changes)) == (RunState.NEW, None)
    with pytest.raises(BadDataError, match="holds no run"):
        decide_run_state(folder, settings(run__resume="must"))


def test_same_run_is_resumed_until_its_report_is_done(folder: RunFolder) -> None:
    put(folder, "config.json", OURS)
    assert decide_run_state(folder, settings()) == (RunState.RESUME, OURS)
    put(folder, "report.json", {"status": "done"})
    assert decide_run_state(folder, settings()) == (RunState.FINISHED, OURS)


def test_resume_must_needs_a_checkpoint(folder: RunFolder) -> None:
    put(folder, "config.json", OURS)
    for name in ("checkpoints/latest.json", "checkpoints/6.ckpt"):
        put(folder, name, {})
    with pytest.raises(BadDataError, match="holds no checkpoint"):
        decide_run_state(folder, settings(run__resume="must"))
    put(folder, "checkpoints/6.json", {})
    assert decide_run_state(folder, settings(run__resume="must"))[0] is RunState.RESUME


@pytest.mark.parametrize("resume", ["auto", "never", "must"])
def test_checkpoints_without_config_are_refused_unless_forced(folder: RunFolder, resume: str) -> None:
    put(folder, "checkpoints/6.json", {})
    with pytest.raises(ConflictError, match="no config.json, so their run is unknown"):
        decide_run_state(folder, settings(run__resume=resume))
    assert decide_run_state(folder, settings(**FORCED))[0] is RunState.NEW
    delete_run(folder, keep="attempts/2.json")
    assert list(folder.store.list()) == []


@pytest.mark.parametrize(
    "text",
    [
        *("{", "[]", "3", "{}", '{"part": "a", "settings": {"data": 3}, "execution": {}}'),
        '{"part": "a", "settings": {}, "execution": {}, "started": 5}',
    ],
)
def test_damaged_config_is_refused_unless_forced(folder: RunFolder, text: str) -> None:
    put(folder, "config.json", text)
    with pytest.raises(BadDataError, match=r"config\.json is"):
        read_config(folder)
    with pytest.raises(BadDataError, match=r"config\.json is"):
        decide_run_state(folder, settings())
    assert decide_run_state(folder, settings(**FORCED))[0] is RunState.NEW
    delete_run(folder, keep="attempts/2.json")
    assert list(folder.store.list()) == []


def test_delete_run_leaves_other_folders_alone(folder: RunFolder) -> None:
    put(folder, "thesis.txt", "mine")
    delete_run(folder, keep="attempts/1.json")
    assert [entry.key for entry in folder.store.list()] == ["thesis.txt"]


def test_delete_run_keeps_the_held_lease(folder: RunFolder) -> None:
    for name in ("config.json", "attempts/1.json", "attempts/2.json", "plots/x.png", "checkpoints/6.ckpt"):
        put(folder, name, {})
    delete_run(folder, keep="attempts/2.json")
    assert [entry.key for entry in folder.store.list()] == ["attempts/2.json"]


def test_folder_of_a_test_cannot_be_trained_in(folder: RunFolder) -> None:
    put(folder, "config.json", {**OURS, "command": "test"})
    put(folder, "report.json", {"status": "done"})
    with pytest.raises(ConflictError, match="is the folder of a test"):
        decide_run_state(folder, settings())


def test_different_settings_are_named_and_working_directory_does_not_count(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    ours = run_config(settings(data__uri="x.zip"), {}, command="train", classes=["Ants"])
    assert (ours["settings"]["data"]["uri"], ours["classes"]) == (str(tmp_path / "x.zip"), ["Ants"])
    put(folder, "config.json", ours)
    assert decide_run_state(folder, settings(data__uri="./x.zip"))[0] is RunState.RESUME
    with pytest.raises(ConflictError, match=r"\(train.seed is 0 in the run, 1 here\)"):
        decide_run_state(folder, settings(data__uri="x.zip", train__seed="1"))
    with pytest.raises(ConflictError, match=r"\(run.init_from is None in the run, other here\)"):
        decide_run_state(folder, settings(data__uri="x.zip", run__init_from="other"))
    with pytest.raises(ConflictError, match="it is of the other part"):
        decide_run_state(folder, configure("b", {"run.run_id": "r"}, [], None).settings)


def test_difference_in_a_uri_is_not_shown(folder: RunFolder) -> None:
    put(folder, "config.json", run_config(settings(data__uri="https://host/x.zip?id=1"), {}, command="train"))
    with pytest.raises(ConflictError, match=r"\(in a URI\)"):
        decide_run_state(folder, settings(data__uri="https://host/x.zip?id=2"))


def test_open_run_takes_a_run_id_or_a_uri(tmp_path: Path) -> None:
    own = settings(run__output=str(tmp_path / "runs"), data__cache_dir=str(tmp_path / "cache"))
    by_id, by_uri = open_run(own, "other"), open_run(own, f"{tmp_path}/elsewhere/other/")
    assert (by_id.uri, by_id.run_id) == (str(tmp_path / "runs/other"), "other")
    assert by_uri.uri == str(tmp_path / "elsewhere/other")
    assert open_run(own, "s3://bucket").uri == "s3://bucket"
    assert open_run(settings(run__output="file:///"), "other").uri == "/other"
    assert open_run(own, "s3://bucket/runs/other").local.is_relative_to(tmp_path / "cache/spool")
