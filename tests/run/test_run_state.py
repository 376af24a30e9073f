"""What a run folder is to a command, before any work and without torch."""

import json
from pathlib import Path
from typing import Any

import pytest

from inat_job.configuration import configure
from inat_job.errors import BadDataError, ConflictError
from inat_job.run.run_state import RunState, check_run, clear, config_of, read_config
from inat_job.settings import Settings
from inat_job.storage import StorageOptions
from inat_job.storage.run_folder import RunFolder, open_run_folder


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
OURS = json.loads(json.dumps(config_of(settings(), {}, command="train")))


def test_an_empty_folder_is_new(folder: RunFolder) -> None:
    for changes in ({}, FORCED, {"run__resume": "never"}):
        assert check_run(folder, settings(**changes)) == (RunState.NEW, None)
    with pytest.raises(BadDataError, match="holds no run"):
        check_run(folder, settings(run__resume="must"))


def test_a_run_of_ours_is_resumed_until_its_report_is_done(folder: RunFolder) -> None:
    put(folder, "config.json", OURS)
    assert check_run(folder, settings()) == (RunState.RESUME, OURS)
    put(folder, "report.json", {"status": "done"})
    assert check_run(folder, settings()) == (RunState.FINISHED, OURS)


def test_must_needs_a_checkpoint(folder: RunFolder) -> None:
    put(folder, "config.json", OURS)
    for name in ("checkpoints/latest.json", "checkpoints/6.ckpt"):
        put(folder, name, {})
    with pytest.raises(BadDataError, match="holds no checkpoint"):
        check_run(folder, settings(run__resume="must"))
    put(folder, "checkpoints/6.json", {})
    assert check_run(folder, settings(run__resume="must"))[0] is RunState.RESUME


@pytest.mark.parametrize("resume", ["auto", "never", "must"])
def test_checkpoints_without_a_config_are_nobodys(folder: RunFolder, resume: str) -> None:
    put(folder, "checkpoints/6.json", {})
    with pytest.raises(ConflictError, match="no config.json that says whose"):
        check_run(folder, settings(run__resume=resume))
    assert check_run(folder, settings(**FORCED))[0] is RunState.NEW
    clear(folder, keep="attempts/2.json")
    assert list(folder.store.list()) == []


@pytest.mark.parametrize("text", ["{", "[]", "3", "{}", '{"part": "a", "settings": {"data": 3}, "execution": {}}'])
def test_a_damaged_config_is_told_and_can_be_forced(folder: RunFolder, text: str) -> None:
    put(folder, "config.json", text)
    with pytest.raises(BadDataError, match=r"config\.json is"):
        read_config(folder)
    with pytest.raises(BadDataError, match=r"config\.json is"):
        check_run(folder, settings())
    assert check_run(folder, settings(**FORCED))[0] is RunState.NEW
    clear(folder, keep="attempts/2.json")
    assert list(folder.store.list()) == []


def test_what_is_no_run_is_never_deleted(folder: RunFolder) -> None:
    put(folder, "thesis.txt", "mine")
    clear(folder, keep="attempts/1.json")
    assert [entry.key for entry in folder.store.list()] == ["thesis.txt"]


def test_clearing_a_run_leaves_the_lease_that_it_is_done_under(folder: RunFolder) -> None:
    for name in ("config.json", "attempts/1.json", "attempts/2.json", "plots/x.png", "checkpoints/6.ckpt"):
        put(folder, name, {})
    clear(folder, keep="attempts/2.json")
    assert [entry.key for entry in folder.store.list()] == ["attempts/2.json"]


def test_the_folder_of_a_test_is_no_run_to_take_up(folder: RunFolder) -> None:
    put(folder, "config.json", {**OURS, "command": "test"})
    put(folder, "report.json", {"status": "done"})
    with pytest.raises(ConflictError, match="is the folder of a test"):
        check_run(folder, settings())


def test_differences_are_named_and_the_folder_is_none(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    ours = config_of(settings(data__uri="x.zip"), {}, command="train", classes=["Ants"])
    assert (ours["settings"]["data"]["uri"], ours["classes"]) == (str(tmp_path / "x.zip"), ["Ants"])
    put(folder, "config.json", ours)
    assert check_run(folder, settings(data__uri="./x.zip"))[0] is RunState.RESUME
    with pytest.raises(ConflictError, match=r"\(train.seed 0 there, 1 here\)"):
        check_run(folder, settings(data__uri="x.zip", train__seed="1"))
    with pytest.raises(ConflictError, match=r"\(run.init_from None there, other here\)"):
        check_run(folder, settings(data__uri="x.zip", run__init_from="other"))
    with pytest.raises(ConflictError, match="it is of the other part"):
        check_run(folder, configure("b", {"run.run_id": "r"}, [], None).settings)


def test_a_difference_that_may_be_secret_is_not_shown(folder: RunFolder) -> None:
    put(folder, "config.json", config_of(settings(data__uri="https://host/x.zip?id=1"), {}, command="train"))
    with pytest.raises(ConflictError, match=r"\(in a URI\)"):
        check_run(folder, settings(data__uri="https://host/x.zip?id=2"))
