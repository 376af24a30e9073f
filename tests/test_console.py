"""What a person sees of a job: on a real terminal, and in a pipe."""

import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from inat_job.console import Console
from tests.harness.children import ENTRYPOINT
from tests.harness.made_images import CLASSES, tree, write_zip
from tests.harness.terminal import CTRL_C, Terminal, drawn

SMALL = "--image-size 32 --filters 4 --dense 8 --batch-size 8 --wandb off --no-pictures --run-id r".split()
BAR = r" +{percent}% \|.*\|"

Pipe = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def data(tmp_path: Path) -> str:
    return str(write_zip(tmp_path / "x.zip", tree(train=20, test=5)))


@pytest.fixture
def piped(tmp_path: Path) -> Pipe:
    """Runs a command line whose output is no terminal, and gives it further variables."""

    def run(*arguments: str, **told: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "INAT_LOG_FORMAT": "auto", "OMP_NUM_THREADS": "1", **told}
        command = [sys.executable, ENTRYPOINT, *arguments]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


@pytest.mark.soak
@pytest.mark.parametrize("columns", [80, 120])
def test_run_on_a_terminal(data: str, tmp_path: Path, columns: int) -> None:
    with Terminal(["parta", "--data", data, *SMALL, "--epochs", "3"], tmp_path, columns) as terminal:
        assert terminal.end() == 0
        raw, screen = terminal.raw, terminal.screen
    for label in ("download", "prepare", "epoch 1/3", "validate", "final-validation", "test"):
        assert re.search(label + BAR.format(percent=0), raw), label  # from the start of each phase
    assert "{" not in raw
    assert max(len(line) for line in screen if "/r" not in line) <= columns
    left = [line.split()[0] for line in screen if "%|" in line.replace(" ", "")]
    assert left == ["prepare", "final-validation", "test"]  # a local file is not downloaded; no two phases share a name
    start = next(number for number, line in enumerate(screen) if line.startswith("Model"))
    assert re.fullmatch(r"Model  five_block, [\d,]+ parameters, all trained", screen[start])
    assert screen[start + 1] == "Data   75 images of 3 classes: 48 train, 12 validation, 15 test"
    assert re.fullmatch(r"Run    cpu \w+, \w+, 1 device, in /.*/runs/r", screen[start + 2])
    heading = next(number for number, line in enumerate(screen) if "train loss" in line)
    rows = screen[heading + 1 : heading + 4]
    assert [row.split()[0] for row in rows] == ["1/3", "2/3", "3/3"]
    assert "*" in rows[0]
    end = "\n".join(screen[heading + 4 :])
    assert re.search(r"Test accuracy by class \(recall\):\n  Ants +\d+\.\d % of 5\n", end)
    run = tmp_path / "runs/r"
    command = re.search(rf"Report  {run}/report.html, and report.json beside it\nNext    (.*)\n", end)
    assert command
    assert command[1] == f"{sys.executable} {ENTRYPOINT} test --checkpoint {run}"
    if columns == 80:
        pasted = subprocess.run(shlex.split(command[1]), cwd=tmp_path, capture_output=True, text=True)
        assert json.loads(pasted.stdout.splitlines()[-1])["event"] == "done"
    assert re.fullmatch(r"Test accuracy 0\.\d{4} \(\d+ of 15 images, 95 % interval .*\)\.", screen[-2])


@pytest.mark.soak
def test_ctrl_c_and_resume_on_a_terminal(data: str, tmp_path: Path) -> None:
    command = ["parta", "--data", data, *SMALL, "--epochs", "400"]
    with Terminal(command, tmp_path) as terminal:
        terminal.until("2/400 .*\n")
        terminal.press(CTRL_C)
        assert terminal.end() == 143
        *_, stopping, stopped, _ = terminal.screen
    assert stopping == "Stopping (SIGINT): storing what is done; a second signal ends at once."
    stored = re.fullmatch(
        r"Stopped: step (\d+) is stored in /.*/runs/r/checkpoints; run the same command again to continue\.", stopped
    )
    assert stored
    with Terminal(command, tmp_path) as terminal:
        terminal.until("Resuming from step .*\n")
        [line] = [line for line in terminal.screen if line.startswith("Resuming")]
        assert line == f"Resuming from step {stored[1]} (epoch {int(stored[1]) // 6 + 1} of 400)"
        terminal.press(CTRL_C)
        assert terminal.end() == 143


HANGING = """
import sys, time
sys.path.insert(0, {root!r})
import entrypoint
from inat_job.commands import train

def hang(job):
    print("The job hangs.", flush=True)
    while True:
        time.sleep(0.1)

train.run_rank = hang
entrypoint.main()
"""
"""A job that does not end when it is stopped."""


def test_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    script = tmp_path / "hanging.py"
    script.write_text(HANGING.format(root=str(Path(ENTRYPOINT).parent)))
    command = ["parta", "--data", "demo:", *SMALL, "--accelerator", "cpu"]
    with Terminal(command, tmp_path, script=str(script)) as terminal:
        terminal.until("The job hangs")
        terminal.press(CTRL_C)
        terminal.until("Stopping .SIGINT.")
        terminal.press(CTRL_C)
        assert terminal.end() == 143
        assert "Stopped at once by a second signal" in terminal.raw
        assert "Error" not in terminal.raw


@pytest.mark.soak
def test_quiet_and_verbose_on_a_terminal(data: str, tmp_path: Path) -> None:
    with Terminal(["parta", "--data", data, *SMALL, "--epochs", "1", "-q"], tmp_path) as terminal:
        assert terminal.end() == 0
        [line, end] = terminal.screen
    assert (line.startswith("Test accuracy 0."), end) == (True, "")
    with Terminal(["parta", "--data", data, *SMALL, "--epochs", "2", "--run-id", "v", "-v"], tmp_path) as terminal:
        assert terminal.end() == 0
        screen = "\n".join(terminal.screen)
    assert re.search(r"^Checkpoint of step 6: \d+\.\d MB, stored in \d+\.\d\d s$", screen, re.M)
    assert f"Run {tmp_path}/runs/v (new)" in screen


@pytest.mark.soak
def test_finished_run_on_a_terminal(data: str, tmp_path: Path) -> None:
    command = ["parta", "--data", data, *SMALL, "--epochs", "1"]
    for _ in range(2):
        with Terminal(command, tmp_path) as terminal:
            assert terminal.end() == 0
            screen = terminal.screen
    assert screen == [f"Already finished; there is nothing to do: see {tmp_path}/runs/r/report.json.", ""]


@pytest.mark.soak
def test_run_in_a_pipe_writes_plain_lines(data: str, piped: Pipe) -> None:
    done = piped("parta", "--data", data, *SMALL, "--epochs", "2")
    assert (done.returncode, done.stdout) == (0, "")
    assert not re.search(r"[\r\x1b{]|\|", done.stderr)
    lines = done.stderr.splitlines()
    assert [line for line in lines if line.endswith(" ...")] == [
        f"{what} ..."
        for what in (
            *("Starting", "Downloading the data", "Decoding the images", "Building the network"),
            "Storing the results",
        )
    ]
    assert [line.split()[0] for line in lines if re.match(r" +\d/\d ", line)] == ["1/2", "2/2"]
    assert lines[-1].startswith("Test accuracy 0.")


@pytest.mark.soak
def test_foreign_names_steer_no_terminal(piped: Pipe, tmp_path: Path) -> None:
    """Of classes, of an archive, and of the run and host in a run's folder."""
    odd = "\x1b[2J\rA\u202e"
    names = {f"/{CLASSES[0]}/": f"/{odd}/", f"/{CLASSES[1]}/": "/B\nError: fake/"}
    files = tree(20, 5)
    for plain, strange in names.items():
        files = {name.replace(plain, strange): data for name, data in files.items()}
    archive = write_zip(
        tmp_path / f"x{odd}.zip", {**files, f"some/where/train/{odd}/broken\x1b[31m.jpg": b"\xff\xd8 no image"}
    )
    for told in ({"INAT_LOG_FORMAT": "text"}, {"INAT_LOG_FORMAT": "json"}):
        run = told["INAT_LOG_FORMAT"]
        done = piped(
            "parta",
            "--data",
            str(archive),
            *SMALL,
            "--epochs",
            "1",
            "--verbose",
            "--max-broken",
            "1",
            "--run-id",
            run,
            **told,
        )
        assert done.returncode == 0, done.stderr
        status = piped("status", run, **told)
        assert status.returncode == 0
        for line in (done.stdout + done.stderr + status.stdout + status.stderr).split("\n"):
            assert line.replace("\t", "").isprintable(), line
            assert not line.startswith("Error: fake")
        for line in done.stdout.splitlines() if told["INAT_LOG_FORMAT"] == "json" else ():
            json.loads(line)


@pytest.mark.soak
def test_two_ranks_log_once(data: str, piped: Pipe) -> None:
    done = piped("parta", "--data", data, *SMALL, "--epochs", "2", "--accelerator", "cpu", "--devices", "2")
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    lines = done.stderr.splitlines()
    assert sum("train loss" in line for line in lines) == 1
    assert [line.split()[0] for line in lines if re.match(r" +\d/\d ", line)] == ["1/2", "2/2"]
    assert any(re.match("Run .* 2 ranks", line) for line in lines)


@pytest.mark.parametrize(
    ("told", "is_json"),
    [
        ({}, False),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_JOB_NAME": "j"}, True),
        ({"AWS_BATCH_JOB_ID": "abc"}, True),
        ({"AWS_BATCH_JOB_ID": "abc", "INAT_LOG_FORMAT": "text"}, False),
        ({"INAT_LOG_FORMAT": "json"}, True),
    ],
)
def test_auto_is_json_on_a_platform(piped: Pipe, told: dict[str, str], is_json: bool) -> None:
    done = piped("prepare", "--prune", **told)
    assert done.returncode == 0
    assert (done.stdout.startswith('{"time": '), done.stderr.startswith("cache holds")) == (is_json, not is_json)


@pytest.mark.soak
def test_reader_that_is_gone_ends_no_job(data: str, tmp_path: Path) -> None:
    command = " ".join([sys.executable, ENTRYPOINT, "parta", "--data", data, *SMALL, "--epochs", "2", "2>&1 | head -1"])
    environment = {**os.environ, "INAT_LOG_FORMAT": "text"}
    subprocess.run(command, shell=True, cwd=tmp_path, env=environment, capture_output=True, check=True)
    assert (tmp_path / "runs/r/report.json").exists()


def test_bar_shows_progress_note_and_time_left() -> None:
    stream = io.StringIO()
    console = Console(stream, bars=True)
    bar = console.progress("epoch 3/3", transient=True)
    bar(0, 10)
    time.sleep(0.11)
    bar(4, 10, "loss 1.213  312 images/s")
    assert re.search(r"epoch 3/3 +40% \|[#█]+.? +\| loss 1\.213  312 images/s  0:00 left", stream.getvalue())
    console.write("a line above the bar")
    assert drawn(stream.getvalue())[0] == "a line above the bar"
    assert drawn(stream.getvalue())[1].startswith("epoch 3/3")
    bar(10, 10)
    assert drawn(stream.getvalue()) == ["a line above the bar", ""]
    bar(3, 10)  # as of a thread that is late
    assert drawn(stream.getvalue()) == ["a line above the bar", ""]


def test_bar_of_a_finished_phase_stays() -> None:
    stream = io.StringIO()
    console = Console(stream, bars=True)
    console.phase("prepare")
    console.progress("prepare", transient=False)(5, 5)
    console.phase("build")
    console.close()
    assert re.fullmatch(r"prepare +100% \|[#█]+\| 0:00", drawn(stream.getvalue())[0])
    assert drawn(stream.getvalue())[1:] == [""]


def test_writer_that_is_stuck_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a terminal that Ctrl-S has stopped: the last line is written all the same."""
    monkeypatch.setattr("inat_job.console._TURN_S", 0.05)
    stream = io.StringIO()
    console = Console(stream, bars=True)
    console.phase("prepare")
    with console._lock:
        thread = threading.Thread(target=lambda: (console.close(), console.write("Stopped.")))
        thread.start()
        thread.join(5)
    assert not thread.is_alive()
    assert "Stopped.\n" in stream.getvalue()


def test_plain_progress_is_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    progress = Console(stream, bars=False).progress("pull", transient=False)
    for done in range(11):
        progress(done, 10)
    assert stream.getvalue() == ""
    monkeypatch.setattr("inat_job.console._LINE_EVERY_S", 0.0)
    progress(5, 10, "312 images/s")
    progress(10, 10)
    assert stream.getvalue() == "download: 50%, 312 images/s, 0:00 left\n"


def test_drawn_lines() -> None:
    assert drawn("abc\rx\ny  \x1b[K\r\nlong\r\x1b[Kz") == ["xbc", "y", "z"]


def test_bars_of_a_notebook_without_widgets_are_text_and_phases_are_lines() -> None:
    stream = io.StringIO()
    console = Console(stream, True, notebook=True)
    console.phase("build")
    for total in (4, 2):
        bar = console.progress(f"epoch of {total}", transient=True)
        for done in range(total + 1):
            bar(done, total)
    kept = console.progress("test", transient=False)
    kept(3, 3)
    console.end()
    assert "\x1b" not in stream.getvalue()
    assert stream.getvalue().startswith("Building the network ...\n")
    assert "test             100% |" in stream.getvalue()
