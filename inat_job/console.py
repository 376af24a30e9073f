"""A person's view of the job: lines on stderr, and one bar at a time below them where stderr is a terminal."""

import contextlib
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any, TextIO

from inat_job.event_text import HEADING, PHASES, duration, printable, printable_values, text_of

_BAR_EVERY_S = 0.1
_LINE_EVERY_S = 30.0
_TURN_S = 1.0
"""Seconds to wait for another thread that writes; one that is stuck, on a stopped terminal, must not hold up an end."""

_MOST_COLUMNS = 100
_CLEAR = "\r\033[K"
"""Clears the line, on which the terminal may have echoed a Ctrl-C."""

_LABELS = {"pull": "download"}
_WIDTH = len("final-validation")
_WITH_BARS = ("pull", "prepare", "features")
"""Phases that have a bar at 0 % until they advance; others have a line."""

_SILENT = ("train", "validate", "final-validation", "test", "test-mirrored", "pictures")
"""Phases whose work reports its progress from the first moment."""

SHOWN_WHEN_QUIET = ("warning", "done")
"""The events that `--quiet` leaves."""


class Console:
    """Writes to `stream`, with bars if `bars`; `quiet` leaves warnings and the last line, `verbose` adds details.

    In a `notebook` the bars are its own where it has ipywidgets. A phase without progress is a line there, since a bar
    that is closed before it is full stays in red, and all transient bars are one, since a cell keeps all its outputs.
    """

    def __init__(
        self, stream: TextIO, bars: bool, quiet: bool = False, verbose: bool = False, notebook: bool = False
    ) -> None:
        self._stream, self._bars, self._quiet, self._verbose = stream, bars and not quiet, quiet, verbose
        self._lock = threading.RLock()
        self._notebook, self._waits = notebook, self._bars and not notebook
        self._idle: Any = None
        self._bar: Any = None
        self._drawn: Progress | None = None
        self._in_table = False
        self._bars_stay = True

    def event(self, name: str, fields: Mapping[str, Any]) -> None:
        """Show an event, if it is for people."""
        if self._quiet and name not in SHOWN_WHEN_QUIET:
            return
        if name == "data":
            self._wait_for("Loading torch")
        if name == "bench":
            self._bars_stay = False  # or every repetition would leave one
            self._wait_for(f"Measuring {fields['stage']}")
        text = text_of(name, printable_values(fields), self._verbose)
        if text is None:
            return
        if name == "epoch" and not self._in_table:
            self._in_table, text = True, f"\n{HEADING}\n{text}"
        if name in ("done", "result"):
            self.close()
        self.write(text)

    def write(self, text: str) -> None:
        """Write lines above the bar."""
        text = printable(text, "\n\t")
        with contextlib.suppress(OSError, ValueError), self._turn() as ours, self._above_the_bar(ours):
            clear = _CLEAR if self._waits else ""
            self._stream.write(clear + text + "\n")  # in one write, as of several processes
            self._stream.flush()

    def phase(self, name: str) -> None:
        """Show that a phase begins."""
        if self._quiet or name in _SILENT:
            self.close()
        elif self._waits and name in _WITH_BARS:
            label = _LABELS.get(name, name)
            self._wait_for(label, f"{label:<{_WIDTH}}   0% |{{bar}}|")
        elif self._waits:
            self._wait_for(PHASES[name])
        else:
            self.write(f"{PHASES[name]} ...")

    def progress(self, label: str, transient: bool) -> "Progress":
        """A bar that appears with the first call; a `transient` one leaves nothing when it is full."""
        return Progress(self, _LABELS.get(label, label), transient)

    def draw(self, progress: "Progress") -> None:
        """Bring the bar to where `progress` is, in the place of the one before."""
        if not self._bars:
            self._line(progress)
            return
        with self._turn() as ours:
            if not ours:
                return
            if self._drawn is not progress:
                self.close()
                self._drawn, self._bar = progress, self._bar_of(progress)
            if not self._notebook:
                self._bar.ncols = self._columns()
            elif self._bar.total != progress.total:
                self._bar.reset(progress.total)  # the widget has a total of its own
            self._bar.total, self._bar.bar_format = progress.total, progress.form
            self._bar.update(progress.done - self._bar.n)
            if progress.full:
                self.close()

    def close(self) -> None:
        """End the bar, which stays on the screen if it is full and not transient."""
        with self._turn() as ours:
            if not ours or self._bar is None:  # and without a turn not even forgotten: tqdm would wait to close it
                return
            if self._drawn:
                self._drawn.over, self._bar.leave = True, self._bars_stay and self._drawn.stays
            if self._drawn and self._drawn.transient and self._drawn.full and hasattr(self._bar, "container"):
                self._idle = self._bar  # a widget
            else:
                self._bar.close()
            self._bar = self._drawn = None

    def end(self) -> None:
        """End the bar for good, also one that is kept for the next progress."""
        self.close()
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    def _wait_for(self, what: str, form: str = "") -> None:
        """Show what is under way, in the place of the bar, until there is another bar."""
        if self._waits:
            with self._turn() as ours:
                self.close()
                self._bar = self._new_bar(1, form or f"{what} ...") if ours else None

    def _line(self, progress: "Progress") -> None:
        now = time.monotonic()
        if self._quiet or progress.full or now - progress.line_at < _LINE_EVERY_S:
            return
        progress.line_at = now
        note = f", {progress.note}" if progress.note else ""
        self.write(f"{progress.label}: {progress.done / (progress.total or 1):.0%}{note}, {progress.left} left")

    def _bar_of(self, progress: "Progress") -> Any:
        if self._idle is None or not progress.transient:
            return self._new_bar(progress.total, progress.form)
        bar, self._idle = self._idle, None
        bar.bar_format = progress.form
        bar.reset(progress.total)
        return bar

    def _new_bar(self, total: int, form: str) -> Any:
        width = {"dynamic_ncols": True} if self._notebook else {"ncols": self._columns()}
        look = {"bar_format": form, "file": self._stream, **width}
        return self._bar_class(total=total, leave=False, mininterval=_BAR_EVERY_S, miniters=1, **look)

    @cached_property
    def _bar_class(self) -> Any:
        """tqdm, as a class of its own: a notebook may draw bars too, with other settings."""
        if self._notebook:
            from tqdm.auto import tqdm
        else:
            from tqdm import tqdm  # 30 ms that only a person's terminal is worth
        bar: Any = type("Bar", (tqdm,), {"monitor_interval": 0})  # no thread that draws by itself
        bar.set_lock(self._lock)  # tqdm's own needs shared memory, which a container may lack
        return bar

    def _columns(self) -> int:
        """The width of a bar, which leaves room for a Ctrl-C's echo."""
        try:
            columns = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):
            columns = 80
        return min(columns, _MOST_COLUMNS) - len("^C^C")

    @contextmanager
    def _turn(self) -> Iterator[bool]:
        """Whether no other thread writes within the block."""
        ours = self._lock.acquire(timeout=_TURN_S)
        try:
            yield ours
        finally:
            if ours:
                self._lock.release()

    @contextmanager
    def _above_the_bar(self, ours: bool) -> Iterator[None]:
        if self._bar is None or not ours:
            yield
            return
        with self._bar.external_write_mode(self._stream):
            yield


class Progress:
    """How far a piece of work is; call it with (done, total), and what else the bar should say."""

    def __init__(self, console: Console, label: str, transient: bool) -> None:
        self._console, self.label, self.transient = console, label, transient
        self.done, self.total, self.note = 0, 1, ""
        self.over = False
        self._begun = self.line_at = time.monotonic()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        if not self.over:  # a thread may be late
            self.done, self.total, self.note = min(done, total), total, note
            self._console.draw(self)

    @property
    def full(self) -> bool:
        return self.done >= self.total

    @property
    def stays(self) -> bool:
        """Whether the bar is left on the screen as it is."""
        return self.full and not self.transient

    @property
    def left(self) -> str:
        """The time that is left at the pace so far."""
        passed = time.monotonic() - self._begun
        return duration(passed * (self.total - self.done) / self.done) if self.done else "an unknown time"

    @property
    def form(self) -> str:
        """tqdm's bar_format."""
        note = f"{self.note}  " if self.note else ""
        end = f" {note}{self.left} left" if self.done else ""
        if self.full:
            end = f" {duration(time.monotonic() - self._begun)}"
        return f"{self.label:<{_WIDTH}} {{percentage:3.0f}}% |{{bar}}|{end}"
