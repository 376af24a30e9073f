"""What the job logs: one JSON object a line on stdout for machines, or text and bars on stderr for people."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import TextIO

from inat_job import watchdog
from inat_job.console import SHOWN_WHEN_QUIET, Console
from inat_job.event_text import printable
from inat_job.job_status import STATUS

Progress = Callable[[int, int], None]
"""Called with (done, total) as work advances."""

_LINE_EVERY_S, _DRAWN_EVERY_S = 10.0, 0.2
IN_EVERY_LINE = ("run_id", "rank", "phase", "step")
"""Fields of the job's status in each JSON line, where they are known."""

_console: Console | None = None
"""Where text goes; None while the log is JSON."""

_quiet = _warnings_alone = False
_drawn = False


def configure(text: bool, quiet: bool = False, verbose: bool = False, drawn: bool = False) -> None:
    """Log text for people on stderr, with bars where that is a terminal, or else JSON.

    `quiet` leaves warnings and the last line, `verbose` adds details to the text; JSON always has them. `drawn` is of a
    JSON log from which another process draws the bars, and which has their progress as often as that needs.
    """
    global _console, _quiet, _warnings_alone, _drawn
    _quiet, _warnings_alone, _drawn = quiet, False, drawn
    _console = Console(sys.stderr, sys.stderr.isatty(), quiet, verbose) if text else None


def is_json() -> bool:
    """Whether the log is for a machine."""
    return _console is None


def only_warnings() -> None:
    """Log nothing but warnings from now on: rank 0 logs what all ranks do."""
    global _warnings_alone
    _warnings_alone = True


def emit(event: str, **fields: object) -> None:
    """Log that `event` happened. Values must be JSON-serialisable.

    A JSON line also has the run, rank, phase and step, as far as they are known; the event's own fields override them.
    """
    if (_warnings_alone and event != "warning") or (_quiet and event not in SHOWN_WHEN_QUIET):
        return
    if _console:
        _console.event(event, fields)
        return
    stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    known = {name: value for name in IN_EVERY_LINE if (value := getattr(STATUS, name)) is not None}
    _write(sys.stdout, json.dumps({"time": stamp, "event": event, **known, **fields}, default=str))


def write_metrics(lines: Iterable[str]) -> None:
    """Write lines that are not JSON to stderr, for platforms that read metrics from the log; rank 0 alone does.

    stdout holds JSON only. A process that logs warnings alone, as a trial of a sweep, writes none.
    """
    if is_json() and STATUS.rank == 0 and not _warnings_alone:
        for line in lines:
            _write(sys.stderr, printable(line))


def write_text(text: str) -> None:
    """Write lines to stderr in either format: an error, a traceback, an answer for a person."""
    if _console:
        _console.write(text)
    else:
        _write(sys.stderr, printable(text, "\n\t"))


def close() -> None:
    """End the bar, if there is one: what follows is the last line."""
    if _console:
        _console.close()


def warn(message: str, **fields: object) -> None:
    """Log what a person should look at, though the job continues."""
    emit("warning", message=message, **fields)


def phase(name: str) -> None:
    """Note that the job enters a phase."""
    if STATUS.phase == name:
        return
    STATUS.phase = name
    watchdog.beat()
    if _console is None:
        emit("phase", phase=name)
    elif not _warnings_alone:
        _console.phase(name)


def progress(of: str, transient: bool = False) -> Callable[..., None]:
    """A callable (done, total) that draws a bar or logs a line now and then; (done, total, note) adds to the bar.

    A `transient` bar leaves nothing on the screen.
    """
    bar = _console.progress(of, transient) if _console else None
    last, before = time.monotonic(), -1

    def show(done: int, total: int, note: str = "") -> None:
        nonlocal last, before
        if done != before:  # callers that wait report again and again, even if nothing advances
            before = done
            watchdog.beat()
        if bar:
            if not _warnings_alone:
                bar(done, total, note)
            return
        now = time.monotonic()
        if now - last >= (_DRAWN_EVERY_S if _drawn else _LINE_EVERY_S) or done >= total:
            last = now
            look = {"transient": transient, "note": note} if _drawn else {}
            emit("progress", of=of, done=done, total=total, **look)

    return show


def _write(stream: TextIO, line: str) -> None:
    with contextlib.suppress(OSError, ValueError):  # a reader that is gone ends no job
        stream.write(line + "\n")  # in one write, since several threads may log at once
        stream.flush()
