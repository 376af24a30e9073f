"""This process: its core dumps, its temporary folders, and its identity.

By the identity another job sees whether a lease's holder still runs.
"""

import os
import resource
import shutil
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_START_TIME_FIELD = 21
"""Index of the start time among the fields of /proc/<pid>/stat, counted from 0."""

_LONGEST_START_S = 30
"""A process older than this was another program before: a shell's `exec` keeps the start time."""

_SAME_MACHINE = ("boot", "namespace")

_temporary_folders: set[str] = set()


def delete_at_end(folder: str) -> None:
    """Let `delete_temporary_folders` delete a folder that a library leaves to Python's exit, which `os._exit` skips."""
    _temporary_folders.add(folder)


def delete_temporary_folders() -> None:
    """Delete the folders of `delete_at_end`, just before the process ends."""
    for folder in _temporary_folders:
        shutil.rmtree(folder, ignore_errors=True)


def open_standard_streams() -> None:
    """Open the standard streams that the parent closed (`>&-`) on the null device.

    Without that the next file that is opened would be in their place, and receive what is printed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 (for as long as the process lives)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def identity(proc: Path = Path("/proc")) -> dict[str, str]:
    """The host's name and the process id and, on Linux, what makes them unique: boot id, PID namespace, start time."""
    pid = str(os.getpid())
    known = {"host": socket.gethostname(), "pid": pid}
    try:
        return known | {
            "boot": (proc / "sys/kernel/random/boot_id").read_text().strip(),
            "namespace": str((proc / "self/ns/pid").readlink()),
            "started": _start_ticks(proc, pid),
        }
    except OSError:  # not Linux: only the lease's expiry shows that a process has ended
        return known


def start_time(proc: Path = Path("/proc")) -> float | None:
    """This process's start as a time.perf_counter() value, to 10 ms; None if it is unknown or implausible."""
    try:
        since_boot = int(_start_ticks(proc, str(os.getpid()))) / os.sysconf("SC_CLK_TCK")  # seconds
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot
    except (OSError, AttributeError, ValueError, IndexError):  # not Linux
        return None
    return time.perf_counter() - age if 0 <= age < _LONGEST_START_S else None


def command_prefix(words: Sequence[str] = sys.orig_argv, arguments: Sequence[str] = sys.argv[1:]) -> list[str]:
    """The words that start this program, without its arguments: ["python", "entrypoint.py"], or ["inat-job"]."""
    prefix = list(words[: len(words) - len(arguments)])
    name = Path(prefix[-1]).name if prefix else ""
    return [name] if name and shutil.which(name) == prefix[-1] else prefix


def disable_core_dumps() -> None:
    """Write no core, here and in children: one of a process on a GPU takes gigabytes of a container's disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))


def has_ended(holder: Mapping[str, str], proc: Path = Path("/proc")) -> bool:
    """Whether the process with the identity `holder` is known to have ended.

    That is known only of a process that ran on this machine since its last boot.
    """
    this = identity(proc)
    if not all(this.get(name) and this.get(name) == holder.get(name) for name in _SAME_MACHINE):
        return False
    pid = holder.get("pid", "")
    try:
        return not pid.isdigit() or _start_ticks(proc, pid) != holder.get("started")
    except FileNotFoundError:
        return (proc / "1" / "stat").exists()  # otherwise other users' processes are hidden, and nothing is known
    except OSError:
        return False


def _start_ticks(proc: Path, pid: str) -> str:
    """The start time in clock ticks since boot. Raises FileNotFoundError for a process that has ended."""
    text = (proc / pid / "stat").read_text(errors="replace")
    fields = text.rpartition(")")[2].split()  # after the command's name, which may contain anything
    if fields[0] == "Z":
        raise FileNotFoundError(pid)  # a zombie: its parent has not noticed its end yet
    return fields[_START_TIME_FIELD - 2]
