"""What the job says while it works: a line and a progress bar for a person, one JSON object a line for a machine."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Mapping

Progress = Callable[[int, int], None]
"""Called with (done, total) as work advances."""

_BAR_EVERY_S = 0.1
_LINE_EVERY_S = 10.0
_facts: dict[str, object] = {}
_quiet = False


def terminal() -> bool:
    """Whether a person is watching."""
    return sys.stderr.isatty()


def only_warnings() -> None:
    """Say nothing more but warnings: another rank of the run tells what they all do."""
    global _quiet
    _quiet = True


def emit(event: str, **fields: object) -> None:
    """Say that `event` happened, to whoever still listens. Values must be JSON-serialisable."""
    if _quiet and event != "warning":
        return
    if terminal():
        details = "  ".join(f"{name}={_short(value)}" for name, value in fields.items())
        stream, line = sys.stderr, f"\r\033[K{event}  {details}".rstrip()
    else:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        stream, line = sys.stdout, json.dumps({"time": stamp, "event": event, **fields}, default=str)
    with contextlib.suppress(OSError, ValueError):  # a reader that has gone ends no training
        stream.write(line + "\n")  # in one write, since several threads may speak at once
        stream.flush()


def warn(message: str, **fields: object) -> None:
    """Say something that a person should look at, though the job goes on."""
    emit("warning", message=message, **fields)


def note(**facts: object) -> None:
    """Remember where the job stands (run, phase, step, checkpoint), for whoever must say it in the end."""
    _facts.update(facts)


def noted() -> Mapping[str, object]:
    """What was noted last, by name."""
    return dict(_facts)


def phase(name: str) -> None:
    """Note that the job enters a phase; a machine that watches is told, a person sees it by the bars."""
    if _facts.get("phase") == name:
        return
    note(phase=name)
    if not terminal():
        emit("phase", phase=name)


def progress(phase: str) -> Progress:
    """A callable (done, total) that draws a bar on a terminal and writes a line now and then elsewhere."""
    interval = _BAR_EVERY_S if terminal() else _LINE_EVERY_S
    last = time.monotonic()

    def show(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < interval and done < total:
            return
        last = now
        if terminal() and not _quiet:
            _draw(phase, done, total)
        else:
            emit("progress", phase=phase, done=done, total=total)

    return show


def _draw(phase: str, done: int, total: int) -> None:
    share = done / total if total else 1.0
    filled = int(30 * share)
    print(
        f"\r\033[K{phase:<10} [{'#' * filled}{'.' * (30 - filled)}] {share:4.0%}", end="", file=sys.stderr, flush=True
    )
    if done >= total:
        print(file=sys.stderr)


def _short(value: object) -> object:
    return f"{value:.4g}" if isinstance(value, float) else value
