"""The harness itself: it reads what the job does, kills what it should, and distinguishes good ends from bad ones."""

import os
import random
import signal
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

import entrypoint
from inat_job.signals import StopFlag
from tests.harness import attempts, cells, freezes, kills, losses, matrix, runner, soak
from tests.harness.attempts import Attempt
from tests.harness.cases import SINGLE_WRITER_CASE, select_cases, write_images
from tests.harness.cloud_stores import has_azurite
from tests.harness.freeze_points import PassPoints
from tests.harness.in_process import in_process, wakeup_descriptor
from tests.harness.kills import Kill
from tests.harness.losses import Loss
from tests.harness.runner import EndedJob, Event, Job
from tests.harness.soak import Run
from tests.harness.stores import LocalOutput, damaged_checkpoints, latest_step, result_of
from tests.harness.tables import soak_summary

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data"))


def ended_job(*events: tuple[float, str, Mapping[str, object]], code: int = -9, signalled: float = 10.0) -> EndedJob:
    return EndedJob(code, signalled, "", [Event(*each) for each in events], signalled=signalled)


@pytest.mark.soak
def test_job_is_watched_killed_and_its_checkpoints_read(archive: Path, tmp_path: Path) -> None:
    output = LocalOutput(tmp_path / "runs")
    command = SINGLE_WRITER_CASE.arguments(str(archive), output.uri, tmp_path / "cache", "r")
    with Job(command, runner.job_environment(), tmp_path) as job:
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
    manifest = next((tmp_path / "runs/r/checkpoints").glob("[0-9]*.json"))  # the newest file may have none yet
    manifest.with_suffix(".ckpt").write_bytes(b"damaged")
    assert damaged_checkpoints(output, "r")


def test_hanging_job_is_killed(archive: Path, tmp_path: Path) -> None:
    command = SINGLE_WRITER_CASE.arguments(str(archive), str(tmp_path / "runs"), tmp_path / "cache", "r")
    with Job(command, runner.job_environment(), tmp_path) as job:
        ended = job.end(timeout=0.3)
        assert (ended.hung, ended.code, ended.seconds < 5) == (True, -9, True)
        assert not job.kill(signal.SIGKILL)


def test_no_process_outlives_the_block(archive: Path, tmp_path: Path) -> None:
    command = SINGLE_WRITER_CASE.arguments(str(archive), str(tmp_path / "runs"), tmp_path / "cache", "r")
    with Job(command, runner.job_environment(), tmp_path) as job:
        pid = job._process.pid
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)


def test_exit_code_and_last_line_of_a_usage_error(tmp_path: Path) -> None:
    ended = runner.run(["parta", "--epochs", "0"], runner.job_environment(), tmp_path)
    assert (ended.code, ended.last) == (2, "Error: --epochs is 0: it must be at least 1.")


def test_no_signal_reaches_a_command_that_ran_in_this_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(entrypoint, "STOP", StopFlag())
    before = wakeup_descriptor()
    with in_process(monkeypatch, capsys) as run:
        assert run("--version").code == 0
        assert wakeup_descriptor() != before
    assert wakeup_descriptor() == before


def test_settings_of_this_process_do_not_reach_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INAT_EPOCHS", "3")
    made = runner.job_environment(AWS_ENDPOINT_URL="http://x")
    assert "INAT_EPOCHS" not in made
    assert (made["OMP_NUM_THREADS"], made["AWS_ENDPOINT_URL"]) == ("1", "http://x")


def test_loss_is_the_training_since_the_last_stored_checkpoint() -> None:
    phases = ((3.0, "phase", {"phase": "train"}), (8.0, "phase", {"phase": "validate"}))
    saved = (6.0, "checkpoint", {"step": 40, "seconds": 1.0})
    after = (8.5, "epoch", {"step": 60})
    assert losses.measure_loss(ended_job(*phases, saved, after, signalled=9.0), 0, 40) == Loss(3.0, 20, 1.0)
    assert losses.measure_loss(ended_job(*phases, saved, signalled=5.5), 0, 40) == Loss(0.5, 0, 1.0)
    assert losses.measure_loss(ended_job(*phases, signalled=9.0), 0, 0).seconds == 5.0
    assert losses.measure_loss(ended_job(*phases, signalled=9.0), 20, 60).seconds == 0.0
    assert losses.measure_loss(ended_job((1.0, "phase", {"phase": "pull"})), 0, 0) == Loss(0.0, 0, 0.0)
    assert losses.largest_loss(0.05, 1.0) == 3.0 + 1.0 + losses.SLACK_S
    assert losses.largest_loss(0.0, 2.0) == 4.0 + losses.SLACK_S


def test_kills_are_reproducible_and_cover_all_phases() -> None:
    drawn = [kills.draw_kill(random.Random(seed), 4.0, 12.0) for seed in range(400)]
    assert drawn == [kills.draw_kill(random.Random(seed), 4.0, 12.0) for seed in range(400)]
    assert {each.moment for each in drawn} == {"", "checkpoint", *kills.PHASES}
    assert {(each.number, each.group) for each in drawn} == {
        (number, group) for number in (signal.SIGKILL, signal.SIGTERM) for group in (False, True)
    }
    at_once = [each.seconds for each in drawn if not each.moment]
    assert min(at_once) < 1.0
    assert max(at_once) > 11.0
    assert sum(each.then_kill is not None for each in drawn) > 20


def test_half_of_the_kills_hit_a_single_rank() -> None:
    drawn = [kills.draw_kill(random.Random(seed), 4.0, 12.0, ranks=2) for seed in range(400)]
    alone = [each for each in drawn if each.rank is not None]
    assert {each.rank for each in alone} == {0, 1}
    assert {(each.number, each.group, each.then_kill) for each in alone} == {(signal.SIGKILL, False, None)}
    assert 150 < len(alone) < 250
    assert {each.number for each in drawn if each.rank is None} == {signal.SIGKILL, signal.SIGTERM}


def test_code_75_is_allowed_only_after_a_lost_rank() -> None:
    lost = EndedJob(75, 9.0, "", [Event(1.0, "phase", {"phase": "train"})], signalled=8.0)
    rank_kill, job_kill = Kill(signal.SIGKILL, False, 1.0, rank=1), Kill(signal.SIGKILL, False, 1.0)
    assert attempts._wrong_end(lost, rank_kill, 0) == []
    assert attempts._wrong_end(replace(lost, code=143), rank_kill, 0) == ["ended with 143: "]
    assert attempts._wrong_end(lost, job_kill, 0) == ["ended with 75: "]
    assert attempts._wrong_end(lost, None, 0) == ["ended with 75: "]


def test_violations_name_the_run_and_the_attempt() -> None:
    loss = Loss(0.5, 3, 0.1)
    kill = Kill(signal.SIGKILL, False, 1.0)
    bad = Attempt(1, 5.0, kill, ["start", "train"], loss, "", signalled=True, wrong=["ended with 1: oops"])
    run = Run("a", "a-0", [bad, Attempt(0, 9.0, None, ["start"], Loss(0.0, 0, 0.0), "")])
    assert run.violations() == ["a-0: attempt 1: ended with 1: oops"]
    summary = soak_summary([run])
    assert (summary["rounds"], summary["killed_in"], summary["violations"]) == (1, {"train": 1}, run.violations())


def test_cells_and_cases_are_selected_by_name() -> None:
    all_cells = cells.select_cells()
    assert len({cell.name for cell in all_cells}) == len(all_cells) > 40
    assert [cell.name for cell in cells.select_cells(["503"], ["pull"])] == ["503-pull"]
    with pytest.raises(ValueError, match="the faults are"):
        cells.select_cells(["none"])
    with pytest.raises(SystemExit, match="names none of"):
        select_cases("c")


def test_points_of_a_freeze_are_changes_of_the_run_and_listings_of_attempts() -> None:
    points = PassPoints("r", "unused", 0)
    request = b"PUT /bucket/runs/r/checkpoints/6.ckpt?partNumber=1 HTTP/1.1\r\nHost: x\r\n\r\n"
    listing = b"GET /bucket?list-type=2&prefix=runs%2Fr%2Fattempts%2F HTTP/1.1\r\n\r\n"
    assert points._point("os.rename", ("/out/r/a.tmp", "/out/r/a", -1, -1)) == "os.rename a.tmp"
    assert points._point("open", ("/out/r/a", None, os.O_WRONLY | os.O_CREAT)) == "open a"
    assert points._point("os.scandir", ("/out/r/attempts",)) == "os.scandir attempts"
    assert points._point("http.client.send", (None, request)) == "PUT checkpoints/6.ckpt?partNumber=1"
    assert points._point("http.client.send", (None, listing)).startswith("GET ")
    for event, arguments in (
        ("open", ("/out/r/a", "r", os.O_RDONLY)),
        ("os.rename", ("/out/other/a", "/out/other/b", -1, -1)),
        ("os.scandir", ("/out/r/checkpoints",)),
        ("http.client.send", (None, request.replace(b"/r/", b"/q/"))),
        ("http.client.send", (None, b"body")),
    ):
        assert points._point(event, arguments) == ""


def new_seed() -> int:
    """Another seed at every call; it is printed, so that a failure can be reproduced."""
    seed = int(time.time())
    print(f"seed={seed}")
    return seed


@pytest.mark.soak
@pytest.mark.parametrize("output", ["local", pytest.param("s3", marks=pytest.mark.long)])
def test_six_frozen_jobs_are_taken_over(output: str) -> None:
    with freezes.freeze_setup(output) as setup:
        done = freezes.freeze_rounds(setup, rounds=6, seed=new_seed(), jobs=3)
    assert [(each.point, each.wrong) for each in done if each.wrong] == []
    assert sum(each.codes[0] == freezes.TAKEN_OVER for each in done) >= 2


@pytest.mark.soak
@pytest.mark.parametrize("output", ["local", "gs", "az"])
def test_soak_of_two_rounds(output: str) -> None:
    """`make test-all` soaks s3:// by itself."""
    if output in ("gs", "az"):
        pytest.importorskip("obstore")
    if output == "az" and not has_azurite():
        pytest.skip("azurite is not installed")
    with soak.soak_setup(output) as setup:
        done = soak.soak(setup, select_cases("a-fp32"), rounds=2, seed=new_seed(), jobs=1)
    assert sum(run.rounds for run in done.runs) >= 2
    assert [text for run in done.runs for text in run.violations()] == []


@pytest.mark.soak
def test_cells_of_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of a fault that `make test-all` leaves out of the matrix it runs, and one whose fault never hits."""
    (cell,) = cells.select_cells(["expired"], ["report"])
    with matrix.matrix_setup() as setup:
        assert matrix.run_cell(cell, setup).wrong == []
        monkeypatch.setitem(cells.PHASES, "pull", "^GET /nowhere")
        assert matrix.run_cell(cells.Cell("503", "pull"), setup).wrong == ["the fault never hit"]
