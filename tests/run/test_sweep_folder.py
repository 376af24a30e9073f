"""A sweep's folder where a run's is expected: what each command says, and that no run is written in it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from inat_job.errors import BadDataError, ConflictError
from inat_job.run.sweep_folder import refuse_sweep, refuse_to_write_in_sweep
from inat_job.storage import Store, open_store
from tests.harness.in_process import Ended

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def sweep(tmp_path: Path) -> Store:
    """A sweep that has begun nothing yet."""
    store = open_store(str(tmp_path / "runs/sw"))
    store.put("sweep.json", b'{"part": "a"}')
    return store


def test_folder_without_a_sweep_is_not_refused(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    refuse_sweep(store)
    refuse_to_write_in_sweep(store)


def test_run_of_a_sweep_is_named(sweep: Store) -> None:
    def said(whole: bool) -> str:
        with pytest.raises(BadDataError, match="^/.*/runs/sw is a sweep") as error:
            refuse_sweep(sweep, whole)
        return str(error.value).partition("is a sweep")[2]

    assert said(False) == ", and has begun no trial yet: run its command again, or name a run."
    sweep.put("trials/0/config.json", b"{}")
    assert said(False) == f": name one of its runs, such as {sweep.uri}/trials/0."
    assert said(True) == ", and has not trained its best settings again yet: run its command again, or name a run."
    for name in ("trial-0-seed-0", "trial-3-seed-0"):
        sweep.put(f"best/{name}/config.json", b"{}")
    assert said(False) == said(True) == f": name one of its runs, such as {sweep.uri}/best/trial-0-seed-0."
    sweep.put("report.json", json.dumps({"best": {"trial": 3}}).encode())
    assert said(False) == said(True) == f": name one of its runs, such as {sweep.uri}/best/trial-3-seed-0."
    sweep.put("report.json", b"[]")
    assert said(True) == f": name one of its runs, such as {sweep.uri}/best/trial-0-seed-0."


@pytest.mark.parametrize(
    "command",
    [
        "status sw",
        "status runs/sw",
        "compare sw other",
        "compare runs/sw/report.json other",
        "predict --model sw image.png",
        "test --checkpoint sw --wandb off",
        "preflight --part a --data demo: --batch-size 8 --wandb off --init-from sw",
    ],
)
def test_command_that_reads_a_run_names_one(sweep: Store, job: Callable[..., Ended], command: str) -> None:
    sweep.put("best/trial-0-seed-0/config.json", b"{}")
    sweep.put("report.json", b'{"kind": "sweep"}')
    ended = job(*command.split())
    assert ended.code == 65
    assert f"sw is a sweep: name one of its runs, such as {sweep.uri}/best/trial-0-seed-0." in ended.last


@pytest.mark.parametrize("more", ["", " --resume never --force"])
def test_run_is_not_written_in_a_sweep(sweep: Store, job: Callable[..., Ended], more: str) -> None:
    small = "--image-size 32 --filters 4 --batch-size 8 --epochs 1"
    ended = job(*f"parta --data demo: {small} --wandb off --run-id sw{more}".split())
    assert (ended.code, "sw is a sweep, which a run would damage: change --run-id." in ended.last) == (78, True)
    assert [entry.key for entry in sweep.list()] == ["sweep.json"]
    with pytest.raises(ConflictError, match="is a sweep, which a run would damage"):
        refuse_to_write_in_sweep(sweep)


def test_sweep_is_not_written_in_a_run(job: Callable[..., Ended], tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "runs/r"))
    store.put("config.json", b"{}")
    ended = job(*"sweep --part a --data demo: --wandb off --run-id r".split())
    assert (ended.code, "/runs/r is a run, which a sweep would damage: change --run-id." in ended.last) == (78, True)
    assert [entry.key for entry in store.list()] == ["config.json"]
