"""A job on a terminal of its own: what it draws, what is left on the screen, and Ctrl-C."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.harness.children import ENTRYPOINT

CTRL_C = b"\x03"


class Terminal:
    """Runs the entrypoint, or another script, on a terminal of this many columns; use it as a context manager."""

    def __init__(
        self,
        arguments: Sequence[str],
        cwd: Path,
        columns: int = 80,
        told: Mapping[str, str] = {},
        script: str = ENTRYPOINT,
    ) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
        environment = {**os.environ, "INAT_LOG_FORMAT": "auto", "OMP_NUM_THREADS": "1", "LANG": "C.UTF-8", **told}
        self._process = subprocess.Popen(
            [sys.executable, script, *arguments],
            cwd=cwd,
            env=environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509  # it allocates nothing
        )
        os.close(theirs)
        self.raw = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def until(self, pattern: str, within_s: float = 60.0) -> None:
        """Read on until it has written the pattern."""
        deadline = time.monotonic() + within_s
        while not re.search(pattern, self.raw):
            assert self._read(), self.raw
            assert time.monotonic() < deadline, self.raw

    def press(self, keys: bytes) -> None:
        """Type on its keyboard."""
        os.write(self._ours, keys)

    def end(self) -> int:
        """Read to its end; the exit code."""
        while self._read():
            pass
        return self._process.wait(60)

    @property
    def screen(self) -> list[str]:
        """The lines as they are left."""
        return drawn(self.raw)

    def _read(self) -> bool:
        try:
            data = os.read(self._ours, 1 << 16)
        except OSError:  # Linux's way of saying that the other end is closed
            return False
        self.raw += data.decode(errors="replace")
        return bool(data)


def drawn(raw: str) -> list[str]:
    """What is on a screen after carriage returns and erasures, without spaces at the ends of lines."""
    lines, column = [""], 0
    for token in re.findall(r"\x1b\[K|\r|\n|[^\r\n\x1b]+", raw):
        if token == "\n":
            lines.append("")
            column = 0
        elif token == "\r":
            column = 0
        elif token == "\x1b[K":
            lines[-1] = lines[-1][:column]
        else:
            line = lines[-1].ljust(column)
            lines[-1] = line[:column] + token + line[column + len(token) :]
            column += len(token)
    return [line.rstrip() for line in lines]
