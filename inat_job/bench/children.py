"""Programs that run beside the bench: asked line by line, or watched from their start to their end."""

import dataclasses
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
from inat_job import events
from inat_job.configuration import options_by_key
from inat_job.errors import JobError
from inat_job.settings import Settings

ROOT = Path(inat_job.__file__).parents[1]
_SAMPLE_S = 0.02
_TAIL = 5


class ChildError(JobError):
    """A program that the bench started has failed."""


def python(*arguments: str) -> list[str]:
    """A command line of this very interpreter."""
    return [sys.executable, *arguments]


def module(name: str, *arguments: str) -> list[str]:
    """A command line that runs a module of this room, in whatever folder: paths in its arguments may be relative."""
    start = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r}); "
    return python("-c", start + f"runpy.run_module('inat_job.bench.{name}', None, '__main__', True)", *arguments)


def job(settings: Settings, command: str = "") -> list[str]:
    """The command line that does the job of these settings: every value is named, so nothing around it counts."""
    entrypoint = python(str(ROOT / "entrypoint.py"), command or f"part{settings.part}", "--log-format=json")
    return [*entrypoint, *_arguments(settings)]


def _arguments(settings: Settings) -> Iterator[str]:
    values = flags_of(settings)
    for key, (each, kind) in options_by_key(settings).items():
        value = values[key]
        if kind is bool:
            yield each.flag if value else f"--no-{each.name}"
        elif value is not None:
            yield f"{each.flag}={','.join(map(str, value)) if isinstance(value, tuple) else value}"


def flags_of(settings: Settings) -> dict[str, object]:
    """The value of every setting by "section.field"."""
    sections = settings.sections().items()
    return {
        f"{name}.{field.name}": getattr(section, field.name)
        for name, section in sections
        for field in dataclasses.fields(section)
    }


@contextmanager
def asked(command: Sequence[str]) -> Iterator["AskedProcess"]:
    """A program that answers each line with a line; it is gone when the block ends."""
    process = subprocess.Popen(  # noqa: S603
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield AskedProcess(process)
    finally:
        process.kill()
        process.communicate()


class AskedProcess:
    """The other end of a program that answers line by line."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def say(self, line: str = "") -> None:
        """Ask."""
        assert self._process.stdin
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def hear(self) -> str:
        """The next line. Raises ChildError where the program has ended."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise self._gone()
        return line.rstrip("\n")

    def _gone(self) -> ChildError:
        code = self._process.wait()
        return ChildError(f"{' '.join(self._process.args)[:200]} ended with code {code}: see above.")  # type: ignore[arg-type]


@dataclass(frozen=True)
class FinishedProcess:
    """A program that is over: its seconds, its most anonymous memory in bytes, its lines with the second of each."""

    seconds: float
    peak_bytes: int
    lines: tuple[tuple[float, str], ...]

    def second_of(self, pattern: str) -> float:
        """When the first line that has the pattern came, in seconds from the start. Raises ChildError without one."""
        for at, line in self.lines:
            if re.search(pattern, line):
                return at
        raise ChildError(f"A program of the bench never printed {pattern!r}.")


def run(command: Sequence[str], until: str | None = None) -> FinishedProcess:
    """Run a program to its end, or kill it as a line has the pattern `until`. Raises ChildError where it fails."""
    begun = time.perf_counter()
    lines: list[tuple[float, str]] = []
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True) as process,  # noqa: S603
    ):
        try:
            assert process.stdout
            peak = _Peak(process.pid)
            for line in process.stdout:
                lines.append((time.perf_counter() - begun, line.rstrip("\n")))
                if until is not None and re.search(until, line):
                    break
            else:
                until = None
            ended = until is not None
        finally:
            if until is not None:
                process.kill()
        code = process.wait()
        if code != 0 and not ended:
            errors.seek(0)
            raise ChildError(f"{' '.join(command)[:200]} ended with code {code}: {' | '.join(list(errors)[-_TAIL:])}")
    return FinishedProcess(time.perf_counter() - begun, peak.stop(), tuple(lines))


class _Peak:
    """Looks at a process's anonymous memory now and then.

    RssAnon is what the process has itself: without pages of files, which the system takes back as it likes
    (https://docs.kernel.org/filesystems/proc.html).
    """

    def __init__(self, pid: int) -> None:
        self._status = Path(f"/proc/{pid}/status")
        self._over = threading.Event()
        self._most = 0
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """The most that was seen, in bytes."""
        self._over.set()
        self._thread.join()
        return self._most

    def _look(self) -> None:
        while not self._over.wait(_SAMPLE_S):
            self._most = max(self._most, anonymous_bytes(self._status))


def anonymous_bytes(status: Path) -> int:
    """RssAnon in a /proc/<pid>/status, 0 where there is none."""
    try:
        match = re.search(r"^RssAnon:\s*(\d+) kB", status.read_text(), re.M)
    except OSError:
        return 0
    return 1024 * int(match[1]) if match else 0


def say(stage: str) -> None:
    """Tell who watches what is being measured."""
    events.emit("bench", stage=stage)
