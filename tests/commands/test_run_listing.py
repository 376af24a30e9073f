"""The list of runs in `status`, and `prune --runs`, local and on S3."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inat_job import events
from inat_job.command_options import PruneOptions, StatusOptions
from inat_job.commands import prune_runs, status
from inat_job.errors import UsageError
from inat_job.run import run_listing
from inat_job.run.run_state import run_config
from inat_job.settings import Settings
from inat_job.signals import never
from inat_job.storage import Store, attempts, open_store
from inat_job.storage.attempts import Attempt
from tests.harness.job_runs import Make, run

DAY_S = 86400.0

pytestmark = pytest.mark.filterwarnings("ignore")


def begin(made: Settings, name: str, why: str, age_s: float) -> Store:
    """A run that was begun, whose last attempt gave its last sign of life so long ago, without training."""
    store = open_store(f"{made.run.output}/{name}")
    config = run_config(made, {}, "train") | {"started": "2026-01-02T03:04:05+00:00"}
    store.put("config.json", json.dumps(config).encode())
    store.put("checkpoints/latest.json", b"{}")
    attempt = Attempt(3, 1.0, {"host": "elsewhere"}, why=why, at=time.time() - age_s)
    store.put(attempt.key, attempt.to_json())
    return store


def table_of(made: Settings, capsys: pytest.CaptureFixture[str]) -> list[list[str]]:
    events.configure(text=True)
    capsys.readouterr()
    status.run(made, None, StatusOptions(), never)
    return [line.split() for line in capsys.readouterr().out.splitlines()]


def test_status_without_a_run_lists_all(settings: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = settings(run__price_per_hour="3600")
    assert table_of(made, capsys)[-1][-3:] == ["holds", "no", "runs."]
    run(made)
    begin(made, "t", "preempted", 5 * DAY_S)
    begin(made, "sweep-1/trials/000", "preempted", DAY_S)
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "config.json").write_text("{")
    header, *rows = table_of(made, capsys)
    assert header == ["run", "part", "started", "epoch", "validation", "test", "state", "cost"]
    by_name = {row[0]: row for row in rows}
    assert [*by_name] == ["bad", "t", "r"], "the latest at the end"
    _, part, _, _, epoch, val, test, state, cost = by_name["r"]
    assert (part, epoch, state) == ("A", "2/2", "finished")
    assert 0 <= float(val) <= 1
    assert 0 <= float(test) <= 1
    assert float(cost) > 0
    assert by_name["t"][-1] == "preempted"
    assert by_name["t"][2:4] == ["2026-01-02", "03:04"]
    assert by_name["bad"][-1] == "damaged"
    with pytest.raises(UsageError, match="--watch is given without a run: name the one to watch"):
        status.run(made, None, StatusOptions(watch=True), never)
    events.configure(text=False)
    status.run(made, None, StatusOptions(), never)
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["run_id"] for each in listed] == [*by_name]
    assert listed[2]["cost"]["total"] > 0


@pytest.mark.parametrize(
    ("cost", "shown"),
    [
        ({"total": 1e300, "device_seconds": 30}, "30 s"),
        ({"total": float("nan"), "device_seconds": 1e300}, ""),
        ({"total": "5"}, ""),
        (5, ""),
    ],
)
def test_damaged_cost_is_unknown(cost: object, shown: str, settings: Make, capsys: pytest.CaptureFixture[str]) -> None:
    made = settings()
    report = {"status": "done", "cost": cost, "test": {"accuracy": float("nan")}}
    begin(made, "t", "finished", DAY_S).put("report.json", json.dumps(report).encode())
    [_, row] = table_of(made, capsys)
    assert " ".join(row).partition("finished ")[2] == shown
    events.configure(text=False)
    status.run(made, None, StatusOptions(), never)
    assert not {"NaN", "Infinity"} & {*re.findall(r"\w+", capsys.readouterr().out)}


Pruned = Callable[[str], dict[str, Any]]


@pytest.mark.parametrize("where", ["local", "s3"])
def test_prune_deletes_old_unfinished_runs_only(
    where: str, settings: Make, capsys: pytest.CaptureFixture[str], request: pytest.FixtureRequest
) -> None:
    changes = {"run__output": f"s3://{request.getfixturevalue('s3_bucket')}/runs"} if where == "s3" else {}
    made = settings(**changes)
    stores = {
        "done": begin(made, "done", "finished", 90 * DAY_S),
        "old": begin(made, "old", "preempted", 40 * DAY_S),
        "killed": begin(made, "killed", attempts.RUNNING, 40 * DAY_S),
        "young": begin(made, "young", "preempted", 20 * DAY_S),
        "alive": begin(made, "alive", attempts.RUNNING, 1.0),
    }
    stores["done"].put("report.json", b'{"status": "done"}')

    def pruned(*age: str) -> dict[str, bool]:
        capsys.readouterr()
        prune_runs.run(made, PruneOptions(*age), never)
        said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        return {each["run_id"]: each["deleted"] for each in said if each["event"] == "unfinished"}

    if where == "local":
        assert pruned() == dict.fromkeys(["alive", "killed", "old", "young"], False)
    assert pruned("30d") == {"alive": False, "killed": True, "old": True, "young": False}
    assert {name for name, store in stores.items() if any(store.list())} == {"done", "young", "alive"}
    assert len([*stores["young"].list()]) == 3


def test_one_run_is_told_in_the_singular(settings: Make, capsys: pytest.CaptureFixture[str]) -> None:
    made = settings()
    begin(made, "old", "preempted", 40 * DAY_S)
    for age, told in (
        ((), "has 1 unfinished run; nothing"),
        (("30d",), "has 1 unfinished run, of which 1 is deleted."),
    ):
        prune_runs.run(made, PruneOptions(*age), never)
        assert told in capsys.readouterr().out.splitlines()[-1]
    prune_runs.run(made, PruneOptions("30d"), never)
    assert "has 0 unfinished runs, of which 0 are deleted." in capsys.readouterr().out


def test_run_that_a_job_takes_up_meanwhile_is_kept(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = settings()
    store = begin(made, "old", "preempted", 40 * DAY_S)
    listed = run_listing.list_runs(made, never)[0]
    parse = attempts.parse_attempt
    begun = replace(parse(3, store.read("attempts/3.json"), 60.0), number=4, why=attempts.RUNNING)
    store.put(begun.key, begun.to_json())
    monkeypatch.setattr(prune_runs, "list_runs", lambda *_: [listed])
    prune_runs.run(made, PruneOptions("30d"), never)
    assert len([*store.list()]) == 4


def test_status_without_a_run_lists_sweeps(settings: Make, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = settings()
    for name in ("done", "begun", "bad"):
        store = open_store(f"{made.run.output}/{name}")
        store.put("sweep.json", b'{"part": "b"}' if name != "bad" else b"{")
        begin(made, f"{name}/trials/0", "preempted", DAY_S)
    report = {"kind": "sweep", "best": {"trial": 0, "val_accuracy": 0.5}, "test": {"mean": 0.25}}
    (tmp_path / "runs/done/report.json").write_text(json.dumps(report))
    _, *rows = table_of(made, capsys)
    assert sorted(rows) == [["bad", "damaged"], ["begun", "B", "sweep"], ["done", "B", "0.5000", "0.2500", "sweep"]]
    prune_runs.run(made, PruneOptions("0d"), never)
    assert [each.folder.run_id for each in run_listing.list_runs(made, never)] == ["bad", "begun", "done"]


def test_prune_keeps_sweeps_and_what_links_lead_to(settings: Make, tmp_path: Path) -> None:
    made = settings()
    sweep = begin(made, "search", "preempted", 40 * DAY_S)
    sweep.put("sweep.json", b"{}")
    outside = begin(settings(run__output=str(tmp_path / "elsewhere")), "real", "preempted", 40 * DAY_S)
    (tmp_path / "runs" / "alias").symlink_to(tmp_path / "elsewhere" / "real")
    prune_runs.run(made, PruneOptions("30d"), never)
    assert (len([*sweep.list()]), len([*outside.list()])) == (4, 3)


def test_prune_keeps_what_a_job_writes_that_takes_over(settings: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = settings()
    store = begin(made, "old", "preempted", 40 * DAY_S)
    [listed] = run_listing.list_runs(made, never)
    acquire = run_listing.acquire

    def acquire_and_lose(*given: Any) -> Any:
        lease = acquire(*given)
        end = lease.end

        def end_and_be_taken_over(why: str) -> None:
            end(why)
            store.put("config.json", b"{}")

        monkeypatch.setattr(lease, "end", end_and_be_taken_over)
        return lease

    monkeypatch.setattr(run_listing, "acquire", acquire_and_lose)
    run_listing.delete_unfinished(listed, 1.0, never)
    assert [entry.key for entry in store.list()] == ["config.json"]
