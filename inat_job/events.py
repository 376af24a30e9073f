"""What the job says while it works: a line and a progress bar for a person, one JSON object a line for a machine."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import TextIO

from inat_job import watchdog
from inat_job.job_status import STATUS

Progress = Callable[[int, int], None]
"""Called with (done, total) as work advances."""

_BAR_EVERY_S = 0.1
_LINE_EVERY_S = 10.0
_IN_EVERY_LINE = ("run_id", "rank", "phase", "step")
"""Fields of the job's status in each of a machine's lines, where they are known."""

_quiet = False


def terminal() -> bool:
    """Whether a person is watching."""
    return sys.stderr.isatty()


def only_warnings() -> None:
    """Say nothing more but warnings: another rank of the run tells what they all do."""
    global _quiet
    _quiet = True


def emit(event: str, **fields: object) -> None:
    """Say that `event` happened, to whoever still listens. Values must be JSON-serialisable.

    A machine is told of the run, rank, phase and step too, as far as they are known; a field of the event's own of such
    a name goes before.
    """
    if _quiet and event != "warning":
        return
    if terminal():
        details = "  ".join(f"{name}={_short(value)}" for name, value in fields.items())
        stream, line = sys.stderr, f"\r\033[K{event}  {details}".rstrip()
    else:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        known = {name: value for name in _IN_EVERY_LINE if (value := getattr(STATUS, name)) is not None}
        said = {"time": stamp, "event": event, **known, **fields}
        stream, line = sys.stdout, json.dumps(said, default=str)
    _write(stream, line)


def plain(lines: Iterable[str]) -> None:
    """Tell a machine lines that are no JSON, on stderr: whoever reads events on stdout finds nothing else there.

    Only the first of several ranks does.
    """
    if not terminal() and STATUS.rank == 0:
        for line in lines:
            _write(sys.stderr, line)


def _write(stream: TextIO, line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a reader that has gone ends no training
        stream.write(line + "\n")  # in one write, since several threads may speak at once
        stream.flush()


def warn(message: str, **fields: object) -> None:
    """Say something that a person should look at, though the job goes on."""
    emit("warning", message=message, **fields)


def phase(name: str) -> None:
    """Note that the job enters a phase; a machine that watches is told, a person sees it by the bars."""
    if STATUS.phase == name:
        return
    STATUS.phase = name
    watchdog.beat()
    if not terminal():
        emit("phase", phase=name)


def progress(of: str) -> Progress:
    """A callable (done, total) that draws a bar on a terminal and writes a line now and then elsewhere."""
    interval = _BAR_EVERY_S if terminal() else _LINE_EVERY_S
    last, before = time.monotonic(), -1

    def show(done: int, total: int) -> None:
        nonlocal last, before
        if done != before:  # for who waits asks again and again, also of work that stands still
            before = done
            watchdog.beat()
        now = time.monotonic()
        if now - last < interval and done < total:
            return
        last = now
        if terminal() and not _quiet:
            _draw(of, done, total)
        else:
            emit("progress", of=of, done=done, total=total)

    return show


def _draw(of: str, done: int, total: int) -> None:
    share = done / total if total else 1.0
    filled = int(30 * share)
    print(f"\r\033[K{of:<10} [{'#' * filled}{'.' * (30 - filled)}] {share:4.0%}", end="", file=sys.stderr, flush=True)
    if done >= total:
        print(file=sys.stderr)


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
