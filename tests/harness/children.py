"""Jobs as processes of their own, which a test starts, listens to, and leaves none of behind."""

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


class Children:
    """Those that were started in the folder `cwd`, each in a session of its own."""

    def __init__(self, cwd: Path) -> None:
        self._cwd = cwd
        self._started: list[Child] = []

    def start(self, arguments: Sequence[str], told: Mapping[str, str] = {}, within: Sequence[str] = ()) -> Child:
        """Start the entrypoint with these arguments and variables, by a command that `within` begins."""
        child = subprocess.Popen(
            [*within, sys.executable, ENTRYPOINT, *arguments],
            cwd=self._cwd,
            env={**os.environ, **told},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._started.append(child)
        return child

    def end(self) -> None:
        """Kill what still runs."""
        for child in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.communicate()


@contextmanager
def children(cwd: Path) -> Iterator[Children]:
    """Children that are ended with the block."""
    made = Children(cwd)
    try:
        yield made
    finally:
        made.end()


def ranks_of(supervisor: int) -> dict[int, int]:
    """The processes of the ranks that a process has started, by their number."""
    found = {}
    for pid in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
        with contextlib.suppress(OSError):  # it has ended since
            told = Path("/proc", pid, "environ").read_text()
            if rank := re.search(r"(?:^|\0)RANK=(\d+)", told):
                found[int(rank[1])] = int(pid)
    return found


def until(child: Child, word: str) -> None:
    """Wait until an event, or another word in quotes, is on its stdout."""
    assert child.stdout is not None
    assert any(f'"{word}"' in line for line in child.stdout), child.communicate()


def ended(child: Child, within: float = 300.0) -> tuple[int, str]:
    """Wait for its end: exit code, and the last line on stderr."""
    _, errors = child.communicate(timeout=within)
    return child.returncode, (errors.splitlines() or [""])[-1]
