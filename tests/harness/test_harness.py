"""The harness itself: it sees what the job does, kills what it should, and tells a good end from a bad one."""

import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.harness import attempts, cells, kills, losses, matrix, runner, soak
from tests.harness.attempts import Attempt
from tests.harness.cases import LONE_CASE, chosen, images
from tests.harness.kills import Kill
from tests.harness.losses import Loss
from tests.harness.runner import Ended, Event, Job
from tests.harness.soak import Run
from tests.harness.stores import LocalOutput, damaged_checkpoints, latest_step, result_of
from tests.harness.tables import soak_summary

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return images(tmp_path_factory.mktemp("data"))


def told(*events: tuple[float, str, Mapping[str, object]], code: int = -9, signalled: float = 10.0) -> Ended:
    return Ended(code, signalled, "", [Event(*each) for each in events], signalled=signalled)


def test_a_run_is_heard_killed_and_read(archive: Path, tmp_path: Path) -> None:
    output = LocalOutput(tmp_path / "runs")
    command = LONE_CASE.arguments(str(archive), output.uri, tmp_path / "cache", "r")
    with Job(command, runner.environment(), tmp_path) as job:
        seen = job.wait_for(lambda event: event.name == "checkpoint", timeout=60)
        assert seen is not None
        assert job.kill(signal.SIGKILL)
        ended = job.end()
    assert (ended.code, ended.hung) == (-9, False)
    assert ended.phases()[:4] == ["start", "pull", "prepare", "build"]
    assert ended.signalled is not None
    assert seen.at <= ended.signalled <= ended.seconds
    assert latest_step(output, "r") >= seen.step > 0
    assert damaged_checkpoints(output, "r") == []
    assert result_of(output, "r") is None
    manifest = next((tmp_path / "runs/r/checkpoints").glob("[0-9]*.ckpt"))
    manifest.write_bytes(b"damaged")
    assert damaged_checkpoints(output, "r")


def test_what_takes_too_long_is_a_hang_and_is_killed(archive: Path, tmp_path: Path) -> None:
    command = LONE_CASE.arguments(str(archive), str(tmp_path / "runs"), tmp_path / "cache", "r")
    with Job(command, runner.environment(), tmp_path) as job:
        ended = job.end(timeout=0.3)
        assert (ended.hung, ended.code, ended.seconds < 5) == (True, -9, True)
        assert not job.kill(signal.SIGKILL)


def test_nothing_outlives_the_block(archive: Path, tmp_path: Path) -> None:
    command = LONE_CASE.arguments(str(archive), str(tmp_path / "runs"), tmp_path / "cache", "r")
    with Job(command, runner.environment(), tmp_path) as job:
        pid = job._process.pid
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)


def test_the_last_line_of_a_refusal_is_kept(tmp_path: Path) -> None:
    ended = runner.run(["parta", "--epochs", "0"], runner.environment(), tmp_path)
    assert (ended.code, ended.last) == (2, "Error: --epochs is 0: it must be at least 1.")


def test_settings_of_the_caller_do_not_reach_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INAT_EPOCHS", "3")
    made = runner.environment(AWS_ENDPOINT_URL="http://x")
    assert "INAT_EPOCHS" not in made
    assert (made["OMP_NUM_THREADS"], made["AWS_ENDPOINT_URL"]) == ("1", "http://x")


def test_a_checkpoint_just_taken_loses_nothing_and_an_older_one_the_time_since() -> None:
    phases = ((3.0, "phase", {"phase": "train"}), (8.0, "phase", {"phase": "validate"}))
    saved = (6.0, "checkpoint", {"step": 40, "seconds": 1.0})
    after = (8.5, "epoch", {"step": 60})
    assert losses.loss_of(told(*phases, saved, after, signalled=9.0), 0, 40) == Loss(3.0, 20, 1.0)
    assert losses.loss_of(told(*phases, saved, signalled=5.5), 0, 40) == Loss(0.5, 0, 1.0)
    assert losses.loss_of(told(*phases, signalled=9.0), 0, 0).seconds == 5.0
    assert losses.loss_of(told(*phases, signalled=9.0), 20, 60).seconds == 0.0
    assert losses.loss_of(told((1.0, "phase", {"phase": "pull"})), 0, 0) == Loss(0.0, 0, 0.0)
    assert losses.bound(0.05, 1.0) == 3.0 + 1.0 + losses.SLACK_S
    assert losses.bound(0.0, 2.0) == 4.0 + losses.SLACK_S


def test_kills_are_drawn_from_the_seed_and_reach_everything() -> None:
    drawn = [kills.draw(random.Random(seed), 4.0, 12.0) for seed in range(400)]
    assert drawn == [kills.draw(random.Random(seed), 4.0, 12.0) for seed in range(400)]
    assert {each.moment for each in drawn} == {"", "checkpoint", *kills.PHASES}
    assert {(each.number, each.group) for each in drawn} == {
        (number, group) for number in (signal.SIGKILL, signal.SIGTERM) for group in (False, True)
    }
    at_once = [each.seconds for each in drawn if not each.moment]
    assert min(at_once) < 1.0
    assert max(at_once) > 11.0
    assert sum(each.then_kill is not None for each in drawn) > 20


def test_of_several_ranks_each_is_killed_alone_half_of_the_time() -> None:
    drawn = [kills.draw(random.Random(seed), 4.0, 12.0, ranks=2) for seed in range(400)]
    alone = [each for each in drawn if each.rank is not None]
    assert {each.rank for each in alone} == {0, 1}
    assert {(each.number, each.group, each.then_kill) for each in alone} == {(signal.SIGKILL, False, None)}
    assert 150 < len(alone) < 250
    assert {each.number for each in drawn if each.rank is None} == {signal.SIGKILL, signal.SIGTERM}


def test_a_lost_rank_ends_a_job_with_75_and_nothing_else_does() -> None:
    lost = Ended(75, 9.0, "", [Event(1.0, "phase", {"phase": "train"})], signalled=8.0)
    of_rank, of_job = Kill(signal.SIGKILL, False, 1.0, rank=1), Kill(signal.SIGKILL, False, 1.0)
    assert attempts._wrong_end(lost, of_rank, 0) == []
    assert attempts._wrong_end(replace(lost, code=143), of_rank, 0) == ["ended with 143: "]
    assert attempts._wrong_end(lost, of_job, 0) == ["ended with 75: "]
    assert attempts._wrong_end(lost, None, 0) == ["ended with 75: "]


def test_a_violation_in_any_attempt_is_told_with_its_run() -> None:
    loss = Loss(0.5, 3, 0.1)
    kill = Kill(signal.SIGKILL, False, 1.0)
    bad = Attempt(1, 5.0, kill, ["start", "train"], loss, "", signalled=True, wrong=["ended with 1: oops"])
    run = Run("a", "a-0", [bad, Attempt(0, 9.0, None, ["start"], Loss(0.0, 0, 0.0), "")])
    assert run.violations() == ["a-0: attempt 1: ended with 1: oops"]
    summary = soak_summary([run])
    assert (summary["rounds"], summary["killed_in"], summary["violations"]) == (1, {"train": 1}, run.violations())


def test_cells_are_chosen_by_name_and_a_wrong_name_is_refused() -> None:
    everything = cells.cells()
    assert len({cell.name for cell in everything}) == len(everything) > 40
    assert [cell.name for cell in cells.cells(["503"], ["pull"])] == ["503-pull"]
    with pytest.raises(ValueError, match="the faults are"):
        cells.cells(["none"])
    with pytest.raises(SystemExit, match="names none of"):
        chosen("c")


@pytest.mark.soak
@pytest.mark.parametrize("output", ["local", "s3"])
def test_two_rounds_of_the_soak(output: str) -> None:
    with soak.place(output) as place:
        done = soak.soak(place, chosen("a-fp32"), rounds=2, seed=int(time.time()), jobs=1)
    assert sum(run.rounds for run in done.runs) >= 2
    assert [text for run in done.runs for text in run.violations()] == []


@pytest.mark.soak
def test_three_cells_of_the_matrix() -> None:
    with matrix.lab() as lab:
        for cell in cells.cells(["503"], ["checkpoint", "resume"]) + cells.cells(["expired"], ["report"]):
            assert matrix.run_cell(cell, lab).wrong == [], cell.name


@pytest.mark.soak
def test_a_cell_whose_fault_never_hits_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cells.PHASES, "pull", "^GET /nowhere")
    with matrix.lab() as lab:
        assert matrix.run_cell(cells.Cell("503", "pull"), lab).wrong == ["the fault never hit"]
