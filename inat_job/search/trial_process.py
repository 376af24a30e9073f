"""A trial's process: forked from one that has imported torch, so that a trial starts at once and shares nothing else.

The start method is multiprocessing's forkserver. A worker watches its trials through their connections, and need not
be a thread or a signal handler for each.
"""

import contextlib
import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import inat_job
from inat_job.host import environment, process
from inat_job.run.trial_link import Ended
from inat_job.signals import SIGNALS

PRELOADED: tuple[str, ...] = ("inat_job.training.run", "inat_job.commands.train", "entrypoint")
"""What the process that trials are forked from imports once, and not each of them."""

_ROOT = Path(inat_job.__file__).resolve().parent.parent
Target = Callable[[Any, Connection], Ended]
"""Runs a trial in its process, given its task, and returns how it ended."""


def preload() -> None:
    """Start the process that trials are forked from, which imports meanwhile; a first trial waits for it.

    It inherits blocked signals: SIGTERM for the whole process group would end it, and with it all word of the trials.
    """
    multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOADED))
    environment.add_import_path(_ROOT)  # multiprocessing ignores a module that it does not find there
    resource_tracker.ensure_running()  # which the fork server needs, and which unblocks the signals as it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        process.delete_at_end(util.get_temp_dir())  # with the server's socket
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class TrialProcess:
    """A running trial, whose environment has `variables` too.

    `connection` is readable when the trial has something to say, or has ended.
    """

    def __init__(self, target: Target, task: Any, variables: Mapping[str, str]) -> None:
        preload()
        context = multiprocessing.get_context("forkserver")
        self.connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_run, args=(target, task, dict(variables), theirs))
        self._process.start()
        theirs.close()
        self._ended: Ended | None = None

    def receive(self) -> Any:
        """The next message, or Ended once the process has ended, however it did."""
        try:
            message = self.connection.recv()
        except (EOFError, OSError):
            return self.join()
        if isinstance(message, Ended):
            self._ended = message
            return self.join()
        return message

    def answer(self, prune: bool) -> None:
        """Answer the trial's report of an epoch."""
        with contextlib.suppress(OSError):  # it has ended meanwhile, which is received next
            self.connection.send(prune)

    def stop(self) -> None:
        """Ask the trial to store its checkpoint and end."""
        if self._process.pid and self._process.is_alive():
            os.kill(self._process.pid, signal.SIGTERM)

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self._process.join()

    def join(self) -> Ended:
        """Wait for the process's end. One that could not say how it ended was killed, or crashed."""
        self._process.join()
        self.connection.close()
        code = self._process.exitcode or 0
        if self._ended:
            return self._ended
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return Ended(code if code > 0 else 128 - code, f"The trial's process {how}.")


def _run(target: Target, task: Any, variables: Mapping[str, str], connection: Connection) -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    environment.set_variables(variables)  # before CUDA starts, which reads which GPUs it may use
    ended = target(task, connection)
    with contextlib.suppress(OSError):  # the worker is gone, and the run folder says it all
        connection.send(ended)
    process.delete_temporary_folders()
    os._exit(ended.code)
