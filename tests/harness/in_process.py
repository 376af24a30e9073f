"""Runs the command line in the test's own process, and restores its signal handlers afterwards."""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import pytest

import entrypoint


class Ended(NamedTuple):
    """How a command ended: its exit code, its stdout, and the last line of its stderr."""

    code: int
    stdout: str
    last: str

    @property
    def lines(self) -> list[str]:
        return self.stdout.splitlines()


def wakeup_descriptor() -> int:
    """The descriptor that signals are written to, -1 for none."""
    descriptor = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(descriptor)
    return descriptor


@contextmanager
def in_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *before: str
) -> Iterator[Callable[..., Ended]]:
    """A function that runs a command line: the words `before`, then its arguments.

    At the end no signal reaches the command's stop flag, whose threads would end this process when its grace is over.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = wakeup_descriptor()

    def run(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["entrypoint.py", *before, *arguments])
        code = 0
        try:
            entrypoint.main()
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return Ended(code, out, (err.strip().splitlines() or [""])[-1])

    try:
        yield run
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(wakeup)
