"""`inat_job.train` and `predict`: the command in a process of its own, its log and errors here."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import inat_job
from inat_job import library
from inat_job.console import Console
from inat_job.errors import BadDataError, EndedError, JobError, Preempted, UsageError
from inat_job.library import _error, _Log
from tests.harness.in_process import wakeup_descriptor
from tests.harness.made_images import CLASSES, encoded, tree, write_zip

ROOT = Path(__file__).parent.parent
SMALL: dict[str, Any] = {"image_size": 32, "filters": (4,), "dense": 8, "batch_size": 8, "wandb": "off", "run_id": "r"}


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises KeyboardInterrupt, also where a shell started the tests in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Trains on a small data set, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    archive = write_zip(tmp_path / "x.zip", tree(train=20, test=5))
    return lambda **options: inat_job.train(**{**SMALL, "data": archive, **options})


@contextmanager
def changes_nothing() -> Iterator[None]:
    """The process is as it was: its handlers, threads, children, hooks, environment and torch's settings."""
    before = _of_this_process()
    yield
    assert _of_this_process() == before


def _of_this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {
        "handlers": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "wakeup": wakeup_descriptor(),
        "threads": {thread.name for thread in threading.enumerate() if thread.name == "log"},
        "children": Path(f"/proc/{pid}/task/{pid}/children").read_text(),
        "hooks": (threading.excepthook, sys.excepthook),
        "environment": dict(os.environ) | {"PYTEST_CURRENT_TEST": ""},
        "warnings": list(warnings.filters),
        "torch": (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), torch.initial_seed()),
    }


@pytest.mark.usefixtures("interruptible")
@pytest.mark.soak
def test_train_stops_at_an_interrupt_resumes_and_returns_the_report(
    train: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The interrupt is delivered to this process alone, as Ctrl-C and a notebook's button do."""
    with changes_nothing():
        checkpoint = Path("runs/r/checkpoints/latest.json")
        stopped = pytest.raises(Preempted, match="Stopped: step .* is stored in .*/runs/r")
        with _interrupted_once_there_is(checkpoint), stopped:
            train(epochs=40)
        assert "Stopping (SIGINT)" in capsys.readouterr().err
        assert not Path("runs/r/report.json").exists()
        report = train(epochs=40)
        shown = capsys.readouterr()
        with ThreadPoolExecutor(1) as pool:  # which is not the main thread
            assert pool.submit(train, epochs=40).result() == report
        assert "Already finished" in capsys.readouterr().err
    assert report == json.loads(Path("runs/r/report.json").read_text())
    assert [attempt["why"] for attempt in report["history"]] == ["preempted", "finished"]
    assert shown.out == ""
    assert "Resuming from step" in shown.err
    assert "train loss" in shown.err
    assert f"{report['test']['accuracy']:.4f}" in shown.err.splitlines()[-1]
    assert not {"{", "metric"} & set(shown.err.split())
    (tmp_path / "a.jpg").write_bytes(encoded(1))
    prediction = inat_job.predict("r", tmp_path / "a.jpg")
    assert prediction == inat_job.load_model("runs/r").predict(tmp_path / "a.jpg")
    assert isinstance(prediction, inat_job.Prediction)
    assert prediction.label in CLASSES


@contextmanager
def _interrupted_once_there_is(path: Path) -> Iterator[None]:
    """Interrupts this process as soon as the path exists, unless the block has ended before."""
    ended = threading.Event()

    def interrupt() -> None:
        while not ended.wait(0.02):
            if path.exists():
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


WRONG: list[tuple[dict[str, Any], str, str]] = [
    ({"epochs": "x"}, "--epochs x", "--epochs is 'x': it must be a whole number."),
    ({"epochs": 0}, "--epochs 0", "--epochs is 0: it must be at least 1."),
    ({"optimiser": "adam"}, "--optimiser adam", "--optimiser is 'adam': it must be one of "),
    ({"quiet": True, "verbose": True}, "-q -v", "--quiet and --verbose contradict each other"),
    ({"config": "nope.toml"}, "--config nope.toml", "--config is nope.toml, which cannot be read"),
]


@pytest.mark.parametrize(("options", "words", "message"), WRONG, ids=[words for _, words, _ in WRONG])
def test_wrong_options_are_refused_as_on_the_command_line(options: dict[str, Any], words: str, message: str) -> None:
    with changes_nothing(), pytest.raises(UsageError) as raised:
        inat_job.train("a", **options)
    command = [sys.executable, str(ROOT / "entrypoint.py"), "parta", *words.split()]
    told = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    assert (told.returncode, told.stderr.splitlines()[-1]) == (raised.value.exit_code, f"Error: {raised.value}")
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ({"epochs": np.int64(3), "lr": np.float32(0.001)}, {"epochs": 3, "lr": 0.001}),
        ({"epochs": np.array(3), "lr": np.float64(0.1)}, {"epochs": 3, "lr": 0.1}),
        ({"filters": np.array([1, 2, 3, 4, 5])}, {"filters": [1, 2, 3, 4, 5]}),
        ({"filters": [np.int32(8)], "augment": np.bool_(False)}, {"filters": (8,), "augment": False}),
        ({"activation": np.str_("gelu"), "export": ()}, {"activation": "gelu", "export": []}),
    ],
)
def test_numbers_of_numpy_are_as_good_as_pythons(
    given: dict[str, Any], plain: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Sequence[str]] = []
    monkeypatch.setattr(library, "_run", lambda words, console: commands.append(words))
    for options in (given, plain):
        with pytest.raises(JobError, match="report.json is gone"):
            inat_job.train("a", data="x.zip", output="/nowhere", **options)
    assert commands[0] == commands[1]


@pytest.mark.parametrize(
    ("part", "options", "message"),
    [
        ("a", {"epoch": 1}, "Part A: there is no setting 'epoch'; did you mean epochs?"),
        ("a", {"backbone": "resnet18"}, "Part A: there is no setting 'backbone'"),
        ("c", {}, "part is 'c': it must be one of a, b."),
        ("a", {"compile": True, "no_compile": True}, "Part A set --compile twice"),
    ],
)
def test_unknown_options_are_refused(part: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as raised:
        inat_job.train(part, **options)
    assert str(raised.value).startswith(message)


def test_errors_of_the_job_are_raised_as_ours(
    train: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    with changes_nothing(), pytest.raises(BadDataError, match="nope.zip does not exist: check --data"):
        train(data="nope.zip")
    assert "Error" not in capsys.readouterr().err  # it is raised, and not shown too


def test_errors_by_exit_code() -> None:
    kinds = (UsageError, BadDataError, Preempted, JobError)
    assert [type(_error(kind.exit_code, "Why.", False)) for kind in kinds] == [*kinds]
    killed = _error(-signal.SIGKILL, "", False)
    assert (type(killed), killed.exit_code) == (EndedError, 137)
    assert "SIGKILL" in str(killed)
    assert type(_error(1, "", interrupted=True)) is Preempted  # before its handler was there
    assert type(_error(1, "A bug.", interrupted=True)) is JobError


def test_log_ends_with_the_job_though_another_process_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job = tmp_path / "job.py"
    job.write_text("import subprocess\nprint(subprocess.Popen(['sleep', '600']).pid)")
    monkeypatch.setattr(library, "ENTRYPOINT", job)
    library._run([], library._console(quiet=False, verbose=False))
    os.kill(int(capsys.readouterr().err), signal.SIGKILL)


class Shown:
    """A console that notes what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def write(self, text: str) -> None:
        self.told.append(text)

    def event(self, name: str, fields: dict[str, Any]) -> None:
        self.told.append((name, fields))

    def phase(self, name: str) -> None:
        self.told.append(name)


def test_quiet_leaves_warnings_and_the_last_line() -> None:
    stream = io.StringIO()
    log = _Log(Console(stream, bars=False, quiet=True))
    for event in (
        {"event": "phase", "phase": "pull"},
        {"event": "warning", "message": "Hot."},
        {"event": "progress", "of": "pull", "done": 1, "total": 1, "note": "", "transient": False},
        {"event": "retrained", "seed": 0, "test_accuracy": 0.5, "val_accuracy": 0.5},
        {"event": "done", "message": "Test accuracy 0.5."},
    ):
        log.show(json.dumps(event))
    assert [line for line in stream.getvalue().splitlines() if line] == ["Warning: Hot.", "Test accuracy 0.5."]


def test_log_lines_of_all_kinds_are_shown() -> None:
    console = Shown()
    log = _Log(console)  # type: ignore[arg-type]
    status = {"time": "t", "run_id": "r", "rank": 0, "phase": "train", "step": 3}
    log.show(json.dumps({**status, "event": "warning", "message": "Hot."}))
    log.show(json.dumps({**status, "event": "phase", "phase": "pull"}))
    log.show(json.dumps({**status, "event": "checkpoint", "step": 7}))
    for text in ("metric val_accuracy=0.5", "", "{of a library}", "Error: not the last", "Error: the last"):
        log.show(text)
    assert console.told[0] == ("warning", {"message": "Hot."})
    assert console.told[1] == "pull"
    assert console.told[2] == ("checkpoint", {"run_id": "r", "rank": 0, "phase": "train", "step": 7})
    assert console.told[3:] == ["{of a library}", "Error: not the last"]
    assert log.sentence == "the last"


@pytest.mark.soak
def test_job_stops_when_its_caller_is_killed(train: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """A caller as a notebook is: with threads and memory, which take time to die."""
    options = {**SMALL, "data": str(tmp_path / "x.zip"), "epochs": 4000}
    script = (
        "import threading, time, inat_job; memory = bytes(range(256)) * 1_000_000\n"
        "for _ in range(16): threading.Thread(target=time.sleep, args=(999,), daemon=True).start()\n"
        f"inat_job.train(**{options!r})"
    )
    caller = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": str(ROOT)})
    try:
        while not (tmp_path / "runs/r/checkpoints/latest.json").exists():
            assert caller.poll() is None
            time.sleep(0.05)
    finally:
        caller.kill()
        caller.wait()
    [attempt] = (tmp_path / "runs/r/attempts").glob("*.json")
    deadline = time.monotonic() + 60
    while json.loads(attempt.read_text())["why"] != "preempted":
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.soak
def test_train_on_two_ranks(train: Callable[..., dict[str, Any]]) -> None:
    """Which a launcher starts: it must not start the caller's program again."""
    report = train(epochs=1, devices=2, accelerator="cpu")
    assert report["environment"]["execution"]["ranks"] == 2
