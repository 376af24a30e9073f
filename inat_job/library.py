"""`train` and `predict` for Python and notebooks.

A call of `train` is the command in a process of its own. So it leaves nothing in the caller's process: no signal
handler, no thread, no GPU memory, no setting of torch. The caller shows the job's events as text and bars.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from inat_job import events
from inat_job.__main__ import ENTRYPOINT
from inat_job.configuration import log_options, options_by_key
from inat_job.console import Console, Progress
from inat_job.distributed.ranks import CALLER
from inat_job.errors import (
    BadDataError,
    ConflictError,
    EndedError,
    JobError,
    NoPermissionError,
    Preempted,
    TransientError,
    UsageError,
)
from inat_job.inference.image_model import ImageLike, Prediction, load_model
from inat_job.options import parse
from inat_job.platforms.detect import detect_platform
from inat_job.platforms.settings_layer import configured, keyed
from inat_job.recipes import RECIPES
from inat_job.reporting.reproduction import option_words
from inat_job.run.run_state import REPORT, open_run

_ERROR = "Error: "
_READ_BY_TEXT = ("phase", "resume", "checkpoint")
"""Events whose text needs one of these fields; in the others it belongs to the line alone."""

_SILENT_S = 1.0
"""Seconds without a line after the end of the job, after which there will be no more."""

_KINDS = (UsageError, BadDataError, TransientError, NoPermissionError, ConflictError, Preempted)


def train(part: str = "a", *, config: str | Path | None = None, **options: Any) -> dict[str, Any]:
    """Train, test and report as `parta` or `partb` does, or resume that; returns what report.json holds.

    `options` are those of the command by the same names, with underscores: `train("b", data="images.zip", epochs=3)`.
    Values are as a file for `--config` has them; None is an option that is not given. An interrupt stores a checkpoint
    first, as Ctrl-C does, and the same call continues from there. Raises JobError: UsageError for a wrong option,
    Preempted where it was stopped, and whatever else ends the command.
    """
    if part not in RECIPES:
        raise UsageError(f"part is {part!r}: it must be one of {', '.join(RECIPES)}.")
    given = {name: _plain(value) for name, value in options.items() if value is not None}
    log = log_options({name: given.pop(name) for name in ("quiet", "verbose") if name in given})
    known = options_by_key(RECIPES[part]())
    flags = keyed(given, known, f"Part {part.upper()}")
    file = None if config is None else str(config)
    settings = configured(detect_platform(), part, flags, (), file).settings
    words = [f"part{part}", "--log-format", "json", *(["--config", file] if file else [])]
    for key, value in flags.items():
        typed = parse(*known[key], value)
        words += option_words(known[key][0], typed if isinstance(typed, bool) else value)
    _run(words, _console(log.quiet, log.verbose))
    folder = open_run(settings, settings.run_id)
    report = folder.read_json(REPORT)
    if not isinstance(report, dict):
        raise JobError(f"{folder.uri}/{REPORT} is gone since the run has finished: train again.")
    return report


def predict(
    model: str | Path,
    images: ImageLike | Sequence[ImageLike],
    *,
    runtime: str = "torch",
    accelerator: str = "auto",
    cache_dir: str | Path = "cache",
    output: str | Path = "runs",
) -> Prediction | list[Prediction]:
    """The prediction of an image, or of each image in a list or tuple, by the model of a run.

    `model` is a run's folder or address, its `model/` folder, or a run id under `output`. Several calls are faster by
    `load_model`, which reads the model once; see there for the rest and the errors.
    """
    loaded = load_model(model, runtime=runtime, accelerator=accelerator, cache_dir=cache_dir, output=str(output))
    found: Prediction | list[Prediction] = loaded.predict(images)
    return found


def _plain(value: Any) -> Any:
    """A value as a file has it: float32's 0.001 is 0.001, not the 0.0010000000474974513 that it has in float64."""
    if isinstance(value, np.ndarray):
        value = list(value) if value.ndim else value[()]
    if isinstance(value, np.floating):
        return float(str(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value


def _console(quiet: bool, verbose: bool) -> Console:
    """Text and bars as the command has them; in a notebook on stdout, since it shows stderr as errors."""
    if _in_notebook():
        return Console(sys.stdout, True, quiet, verbose, notebook=True)
    return Console(sys.stderr, sys.stderr.isatty(), quiet, verbose)


def _in_notebook() -> bool:
    """Whether a Jupyter kernel, Colab's and Kaggle's too, runs this code."""
    ipython = sys.modules.get("IPython")
    return hasattr(ipython.get_ipython(), "kernel") if ipython else False


def _run(words: Sequence[str], console: Console) -> None:
    """Run the command to its end and show its log. Raises its error as ours."""
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, str(ENTRYPOINT), *words],
        env=_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # an interrupt of the terminal or the kernel reaches it once, from here
    )
    assert process.stdout
    shown = _Log(console)
    lines, interrupted = _lines(process.stdout), False
    try:
        while True:
            try:
                while (line := _next(lines, process)) is not None:
                    shown.show(line)
                code = process.wait()
                break
            except KeyboardInterrupt:
                interrupted = True
                process.send_signal(signal.SIGINT)
    finally:
        console.end()
        if process.poll() is None:
            process.terminate()
            process.wait()
    if code:
        raise _error(code, shown.sentence, interrupted)


def _environment() -> dict[str, str]:
    """The caller's environment and import path, without its options for the log, which the caller itself draws."""
    told = {name: value for name, value in os.environ.items() if name not in ("INAT_QUIET", "INAT_VERBOSE")}
    return {**told, CALLER: str(os.getpid()), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _lines(stream: IO[bytes]) -> "queue.SimpleQueue[str | None]":
    """The lines of a stream, and None after the last: read in a thread, so that an interrupt loses none."""
    found: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def read() -> None:
        with stream:
            for line in stream:
                found.put(line.decode(errors="replace").rstrip("\n"))
        found.put(None)

    threading.Thread(target=read, name="log", daemon=True).start()
    return found


def _next(lines: "queue.SimpleQueue[str | None]", process: "subprocess.Popen[bytes]") -> str | None:
    """The next line, or None at the end: a process that the job has left behind may keep the stream open."""
    while True:
        try:
            return lines.get(timeout=_SILENT_S)
        except queue.Empty:
            if process.poll() is not None:
                return None


def _error(code: int, sentence: str, interrupted: bool) -> JobError:
    """The error that ended the command; without a sentence of its own it was killed, or interrupted as it began."""
    if code == Preempted.exit_code or (interrupted and not sentence):
        return Preempted(sentence or "Stopped.")
    if code < 0:
        how = signal.Signals(-code).name
        return EndedError(f"Training was killed by {how}, perhaps for lack of memory: train again.", 128 - code)
    kinds = {each.exit_code: each for each in _KINDS}
    return kinds.get(code, JobError)(sentence or f"Training ended with code {code} and said nothing.")


class _Log:
    """Shows the lines of the command's log; `sentence` is the error in the last one."""

    def __init__(self, console: Console) -> None:
        self.sentence = ""
        self._console = console
        self._bar: Progress | None = None
        self._of = ""

    def show(self, line: str) -> None:
        """Show a line: an event, or text of the job's or a library's."""
        if self.sentence:
            self._console.write(_ERROR + self.sentence)
            self.sentence = ""
        fields = _event(line)
        if fields is not None:
            self._show_event(fields.pop("event"), fields)
        elif line.startswith(_ERROR):
            self.sentence = line.removeprefix(_ERROR)
        elif line.strip() and not line.startswith("metric "):
            self._console.write(line)

    def _show_event(self, name: str, fields: dict[str, Any]) -> None:
        fields.pop("time", None)
        if name == "phase":
            self._console.phase(fields["phase"])
        elif name == "progress":
            self._draw(fields)
        else:
            left_out = () if name in _READ_BY_TEXT else events.IN_EVERY_LINE
            shown = {field: value for field, value in fields.items() if field not in left_out}
            self._console.event(name, shown | ({"next": None} if name == "result" else {}))  # a command line

    def _draw(self, fields: Mapping[str, Any]) -> None:
        """Draw a bar. One that is full already is told to be so once more, by work that waits."""
        of, done, total = fields["of"], fields["done"], fields["total"]
        if self._bar is None or self._of != of or (self._bar.over and done < total):
            self._bar, self._of = self._console.progress(of, fields["transient"]), of
        self._bar(done, total, fields["note"])


def _event(line: str) -> dict[str, Any] | None:
    try:
        fields = json.loads(line) if line.startswith("{") else None
    except ValueError:
        return None
    return fields if isinstance(fields, dict) and isinstance(fields.get("event"), str) else None
