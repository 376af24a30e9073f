"""Jobs as child processes of a test, none of which outlives it."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

Child = subprocess.Popen[str]

ENTRYPOINT = str(Path(__file__).parents[2] / "entrypoint.py")

IMPORT_PATH = os.pathsep.join(
    filter(None, (str(Path(__file__).parent / "as_in_the_image"), os.environ.get("PYTHONPATH")))
)
"""PYTHONPATH for the jobs that tests start: it hides what torchmetrics would import and the image has not."""


class Children:
    """The jobs started in the folder `cwd`, each in its own session."""

    def __init__(self, cwd: Path) -> None:
        self._cwd = cwd
        self._started: list[Child] = []

    def start(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str] = {},
        prefix: Sequence[str] = (),
        script: str = ENTRYPOINT,
    ) -> Child:
        """Start a script with these arguments and additional variables; the command line begins with `prefix`."""
        child = subprocess.Popen(
            [*prefix, sys.executable, script, *arguments],
            cwd=self._cwd,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(child)
        return child

    def kill_all(self) -> None:
        """Kill the jobs that still run."""
        for child in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()


@contextmanager
def children(cwd: Path) -> Iterator[Children]:
    """Child processes that are killed at the end of the block."""
    made = Children(cwd)
    try:
        yield made
    finally:
        made.kill_all()


def ranks_of(launcher: int) -> dict[int, int]:
    """The process ids of the ranks that a process has started, by rank."""
    found = {}
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        with contextlib.suppress(OSError):  # it has ended since
            variables = Path("/proc", pid, "environ").read_text()
            if rank := re.search(r"(?:^|\0)RANK=(\d+)", variables):
                found[int(rank[1])] = int(pid)
    return found


def wait_for_event(child: Child, name: str) -> None:
    """Wait until an event of this name, or another word in quotes, is on the child's stdout."""
    assert child.stdout is not None
    assert any(f'"{name}"' in line for line in child.stdout), child.communicate()


def wait_for_end(child: Child, timeout_s: float = 300.0) -> tuple[int, str]:
    """Wait until the child has ended; returns its exit code and the last line on stderr."""
    _, errors = child.communicate(timeout=timeout_s)
    return child.returncode, (errors.splitlines() or [""])[-1]
