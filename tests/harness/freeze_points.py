"""The points at which a job's writes can be frozen: just before it changes its run's folder, or lists the attempts."""

import os
import signal
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate", "shutil.rmtree")
_LISTINGS = ("os.listdir", "os.scandir")


@dataclass(frozen=True)
class PassPoints:
    """Called in the job's process before its work: notes each point of the run `run` in the file `notes`, and sends
    SIGSTOP to its own thread at the `at`-th, which stops the process there; 0 is none.

    Python's audit events come before the system calls that they are named after.
    """

    run: str
    notes: str
    at: int

    def __call__(self) -> None:
        notes, lock, passed = os.open(self.notes, os.O_CREAT | os.O_WRONLY | os.O_APPEND), threading.Lock(), [0]

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            if point := self._point(event, arguments):
                with lock:
                    passed[0] += 1
                    mine = passed[0]
                os.write(notes, f"{mine} {point}\n".encode())
                if mine == self.at:
                    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

        sys.addaudithook(hook)

    def count(self) -> int:
        """The number of points passed."""
        return len(Path(self.notes).read_text().splitlines())

    def last(self) -> str:
        """The point at which it was frozen."""
        lines = Path(self.notes).read_text().splitlines()
        return next((line.partition(" ")[2] for line in lines if line.startswith(f"{self.at} ")), "")

    def _point(self, event: str, arguments: tuple[Any, ...]) -> str:
        """A point's description; empty for anything else."""
        if event == "http.client.send":
            return self._request(arguments[1])
        path = str(arguments[0]) if arguments else ""
        of_run = f"/{self.run}/" in f"{path}/"
        if event in _CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return f"{event} {path.rpartition(f'/{self.run}/')[2]}" if of_run else ""
        return f"{event} attempts" if event in _LISTINGS and of_run and "attempts" in path else ""

    def _request(self, data: Any) -> str:
        """The request that `data` begins, if it changes the run or lists its attempts."""
        if not isinstance(data, bytes) or b" HTTP/1.1\r\n" not in data:
            return ""
        method, address = data.partition(b" HTTP/1.1\r\n")[0].decode("latin-1").split(" ", 1)
        of_run = f"/{self.run}/" in address or f"%2F{self.run}%2F" in address
        listing = method == "GET" and "list-type" in address and "attempts" in address
        wanted = of_run and (method in ("PUT", "POST", "DELETE") or listing)
        return f"{method} {address.rpartition(f'/{self.run}/')[2]}" if wanted else ""
