"""Starts the job as a user does, in its own process group, reads its events, and kills it on demand.

Only the command line, the exit code, the events on stdout and the last line on stderr are used.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.children import ENTRYPOINT, IMPORT_PATH, ranks_of
from tests.harness.warm_jobs import Fork

HANG_S = 240.0
"""Seconds after which an attempt counts as hanging."""

_TICK_S = 0.02


@dataclass(frozen=True)
class Event:
    """An event that the job logged, and the seconds from its start."""

    at: float
    name: str
    fields: Mapping[str, Any]

    @property
    def step(self) -> int:
        """The step in its fields, 0 without one."""
        return int(self.fields.get("step", 0))


@dataclass(frozen=True)
class EndedJob:
    """An attempt that has ended, seen from outside.

    `code` is negative if a signal killed it, `errors` all that it wrote to stderr, and `signalled` the seconds from its
    start until the kill.
    """

    code: int
    seconds: float
    errors: str
    events: Sequence[Event]
    hung: bool = False
    signalled: float | None = None

    @property
    def last(self) -> str:
        """The last line on stderr."""
        return (self.errors.strip().splitlines() or [""])[-1]

    def named(self, name: str) -> list[Event]:
        """The events of this name, in order."""
        return [event for event in self.events if event.name == name]

    def append_to_log(self, path: Path) -> None:
        """Append its events and its end to a file, for people."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            for event in self.events:
                file.write(f"{event.at:8.3f} {event.name} {json.dumps(event.fields)}\n")
            killed = f", the signal at {self.signalled:.3f}" if self.signalled is not None else ""
            file.write(f"{self.seconds:8.3f} ended with {self.code}{killed}: {self.errors.strip()}\n")

    def phases(self) -> list[str]:
        """The phases that were entered, in order."""
        return [str(event.fields.get("phase")) for event in self.named("phase")]


Start = Callable[[Sequence[str], Mapping[str, str], Path, int], "subprocess.Popen[bytes] | Fork"]
"""Starts a job with these arguments and this environment in a folder, with a file descriptor as stderr."""


def start_process(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path, stderr: int
) -> "subprocess.Popen[bytes]":
    """Start a job as a user does."""
    return subprocess.Popen(
        [sys.executable, ENTRYPOINT, *arguments],
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        start_new_session=True,
    )


@dataclass
class Job:
    """A running job. Use it as a context manager, so that no process of it outlives the block."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    events: list[Event] = field(default_factory=list)
    signalled: float | None = None
    start: Start = start_process

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the job)
        self._begun = time.monotonic()
        self._process = self.start(self.arguments, self.environment, self.folder, self._stderr.fileno())
        self._reader = threading.Thread(target=self._read_events, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *error: object) -> None:
        if self._process.poll() is None:
            self.kill(signal.SIGKILL, group=True)
            self._process.wait()
        self._reader.join()
        if self._process.stdout:
            self._process.stdout.close()
        self._stderr.close()

    @property
    def age(self) -> float:
        """Seconds since its start."""
        return time.monotonic() - self._begun

    def wait_for(self, condition: Callable[[Event], bool], timeout: float = HANG_S) -> Event | None:
        """The first event that meets the condition, or None if the job ends or the time is up without one."""
        seen, until = 0, time.monotonic() + timeout
        while True:
            over = self._process.poll() is not None or time.monotonic() > until
            if over:
                self._reader.join(1.0)
            for event in self.events[seen:]:
                seen += 1
                if condition(event):
                    return event
            if over:
                return None
            time.sleep(_TICK_S)

    def wait_until_frozen(self, timeout: float = HANG_S) -> bool:
        """Wait until SIGSTOP has stopped it; returns False if it ends before."""
        until = time.monotonic() + timeout
        while self._process.poll() is None and time.monotonic() < until:
            if is_frozen(self._process.pid):
                return True
            time.sleep(_TICK_S / 4)
        return False

    def sleep_until(self, age: float) -> bool:
        """Wait until `age` seconds from the job's start; returns whether it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, age - self.age))
            return False
        return True

    def kill(self, number: signal.Signals, group: bool = False, rank: int | None = None) -> bool:
        """Send a signal to the process, to its group, or to one of its ranks; returns whether it still ran."""
        if self._process.poll() is not None:
            return False
        pid = self._process.pid if rank is None else ranks_of(self._process.pid).get(rank)
        if pid is None:
            return False
        if self.signalled is None:
            self.signalled = self.age
        if group:
            os.killpg(self._process.pid, number)
        else:
            os.kill(pid, number)
        return True

    def end(self, timeout: float = HANG_S) -> EndedJob:
        """Wait for the job's end. A job that has not ended after `timeout` seconds hangs, and is killed."""
        hung = False
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            hung = True
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        seconds = self.age
        self._reader.join()
        assert self._process.returncode is not None
        return EndedJob(self._process.returncode, seconds, self._errors(), list(self.events), hung, self.signalled)

    def _errors(self) -> str:
        self._stderr.seek(0)
        return self._stderr.read().decode(errors="replace")

    def _read_events(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            with contextlib.suppress(ValueError, TypeError):
                fields = json.loads(line)
                name = str(fields.pop("event"))
                self.events.append(Event(self.age, name, fields))


def is_frozen(pid: int) -> bool:
    """Whether SIGSTOP has stopped a process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


def run(arguments: Sequence[str], environment: Mapping[str, str], folder: Path, timeout: float = HANG_S) -> EndedJob:
    """Run a job undisturbed."""
    with Job(arguments, environment, folder) as job:
        return job.end(timeout)


def job_environment(**more: str) -> dict[str, str]:
    """This process's environment without the job's settings, with one thread for torch, plus `more`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("INAT_", "WANDB_"))}
    own = {"INAT_LOG_FORMAT": "json", "OMP_NUM_THREADS": "1", "PYTHONPATH": IMPORT_PATH, "PYTHONUNBUFFERED": "1"}
    return {**inherited, **own, **more}
