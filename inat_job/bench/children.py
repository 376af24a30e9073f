"""Child processes of the bench: those that answer line by line, and those that are timed from start to end."""

import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import inat_job
from inat_job.configuration import options_by_key
from inat_job.errors import JobError
from inat_job.options import as_text
from inat_job.settings import Settings

ROOT = Path(inat_job.__file__).parents[1]
_SAMPLE_S = 0.02
_LAST_LINES = 5


class ChildError(JobError):
    """A child process of the bench has failed."""


def module(name: str, *arguments: str) -> list[str]:
    """A command line that runs a module of this folder from any working directory, so that paths may be relative."""
    start = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); "
    start += f"runpy.run_module('inat_job.bench.{name}', None, '__main__', True)"
    return [sys.executable, "-c", start, *arguments]


def job(settings: Settings) -> list[str]:
    """The command line of a job with these settings: every value is given, so that the environment does not matter."""
    program = [sys.executable, str(ROOT / "entrypoint.py"), f"part{settings.part}", "--log-format=json"]
    return [*program, *_arguments(settings)]


def _arguments(settings: Settings) -> Iterator[str]:
    values = settings.by_key()
    for key, (option, kind) in options_by_key(settings).items():
        value = values[key]
        if kind is bool:
            yield option.flag if value else f"--no-{option.name}"
        elif value is not None:
            yield f"{option.flag}={as_text(value)}"


@contextmanager
def line_server(command: Sequence[str]) -> Iterator["LineServer"]:
    """A process that answers each line with a line, for the block; it is killed after the block."""
    process = subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield LineServer(process)
    finally:
        process.kill()
        process.communicate()


class LineServer:
    """A running process that answers line by line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def send(self) -> None:
        """Send an empty line. Raises ChildError if the process has ended."""
        assert self._process.stdin
        try:
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def receive(self) -> str:
        """The next line. Raises ChildError if the process has ended."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return line.rstrip("\n")

    def _ended(self) -> ChildError:
        code = self._process.wait()
        return ChildError(f"{' '.join(self._process.args)[:200]} ended with code {code}: see above.")  # type: ignore[arg-type]


@dataclass(frozen=True)
class FinishedProcess:
    """A process that has ended: its seconds, its peak of anonymous memory in bytes, its lines and when each came."""

    seconds: float
    peak_bytes: int
    lines: tuple[tuple[float, str], ...]

    def second_of(self, pattern: str) -> float:
        """Seconds from the start until the first line that contains the pattern. Raises ChildError without one."""
        for at, line in self.lines:
            if re.search(pattern, line):
                return at
        raise ChildError(f"A program of the bench never printed {pattern!r}.")


def run(command: Sequence[str], until: str | None = None) -> FinishedProcess:
    """Run a process to its end, or kill it when a line contains the pattern `until`. Raises ChildError if it fails."""
    started = time.perf_counter()
    lines: list[tuple[float, str]] = []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,  # noqa: S603
    ):
        try:
            assert process.stdout
            peak = _PeakMemory(process.pid)
            for line in process.stdout:
                lines.append((time.perf_counter() - started, line.rstrip("\n")))
                if until is not None and re.search(until, line):
                    break
            else:
                until = None
            killed = until is not None
        finally:
            if until is not None:
                process.kill()
        code = process.wait()
        if code != 0 and not killed:
            errors.seek(0)
            last = " | ".join(line.strip() for line in list(errors)[-_LAST_LINES:])
            raise ChildError(f"{' '.join(command)[:200]} ended with code {code}: {last}")
    return FinishedProcess(time.perf_counter() - started, peak.stop(), tuple(lines))


class _PeakMemory:
    """Samples the anonymous memory of a process.

    RssAnon leaves out pages of files, which the kernel can take back at any time
    (https://docs.kernel.org/filesystems/proc.html).
    """

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._over = threading.Event()
        self._peak = 0
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The highest sample, in bytes."""
        self._over.set()
        self._thread.join()
        return self._peak

    def _sample(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            self._peak = max(self._peak, anonymous_bytes(self._status))


def anonymous_bytes(status: Path) -> int:
    """RssAnon in a /proc/<pid>/status, in bytes; 0 if it is not there."""
    try:
        match = re.search(r"^RssAnon:\s*(\d+) kB", status.read_text(), re.M)
    except OSError:
        return 0
    return 1024 * int(match[1]) if match else 0
