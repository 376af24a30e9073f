"""Jobs in forks of one process that has imported the libraries: a whole small job takes about two seconds."""

import faulthandler
import io
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests.harness.children import ENTRYPOINT

_LIBRARIES = ("lightning.pytorch", "torchvision", "torchmetrics", "boto3", "matplotlib.pyplot", "inat_job.training.run")

Prologue = Callable[[], None]
"""What a fork does before the job begins; picklable."""


def _nothing() -> None:
    pass


class Fork:
    """A job in a fork, with what runner.Job uses of subprocess.Popen."""

    def __init__(self, process: ForkServerProcess, stdout: io.BufferedReader) -> None:
        self._process, self.stdout = process, stdout
        assert process.pid
        self.pid = process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(ENTRYPOINT, timeout or 0.0)
        return self._process.exitcode


def fork_job(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path, stderr: int, prologue: Prologue = _nothing
) -> Fork:
    """Start a job in a fork, in a session of its own; `stderr` is a file descriptor."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_LIBRARIES))
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # torch reads it when the server imports it
    reading, writing = context.Pipe(duplex=False)
    errors = Connection(os.dup(stderr), readable=False)
    process = context.Process(
        target=_run, args=(list(arguments), dict(environment), str(folder), writing, errors, prologue)
    )
    process.start()
    writing.close()
    errors.close()
    stdout = os.fdopen(os.dup(reading.fileno()), "rb")
    reading.close()
    return Fork(process, stdout)


def _run(
    arguments: list[str],
    environment: dict[str, str],
    folder: str,
    stdout: Connection,
    stderr: Connection,
    prologue: Prologue,
) -> None:
    os.setsid()
    os.chdir(folder)
    for number, connection in ((1, stdout), (2, stderr)):
        os.dup2(connection.fileno(), number)
        connection.close()
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.environ.clear()
    os.environ.update(environment)
    faulthandler.register(signal.SIGUSR1)  # shows on stderr where each thread waits
    sys.argv = [ENTRYPOINT, *arguments]
    prologue()
    runpy.run_path(ENTRYPOINT, run_name="__main__")
