"""Which process this is, so that another job can tell whether the holder of a lease still runs on its machine."""

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

_STARTED = 21
"""Index of a process's start time among the fields of /proc/<pid>/stat."""

_LONG_S = 30
"""Who has lived longer before it asks was not this program all the time: a shell's `exec` keeps the start."""

_SAME_MACHINE = ("boot", "namespace")


def identity(proc: Path = Path("/proc")) -> dict[str, str]:
    """The host's name, for people, and on Linux what no other process has: boot, namespace, number and start time."""
    pid = str(os.getpid())
    known = {"host": socket.gethostname(), "pid": pid}
    try:
        return known | {
            "boot": (proc / "sys/kernel/random/boot_id").read_text().strip(),
            "namespace": str((proc / "self/ns/pid").readlink()),
            "started": _started(proc, pid),
        }
    except OSError:  # no Linux: then only time tells that a process is gone
        return known


def started(proc: Path = Path("/proc")) -> float | None:
    """The time.perf_counter() of this process's start, to a hundredth, or None where nothing tells it plausibly."""
    try:
        begun = int(_started(proc, str(os.getpid()))) / os.sysconf("SC_CLK_TCK")  # seconds since the machine's start
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - begun
    except (OSError, AttributeError, ValueError, IndexError):  # no Linux
        return None
    return time.perf_counter() - age if 0 <= age < _LONG_S else None


def gone(holder: Mapping[str, str], proc: Path = Path("/proc")) -> bool:
    """Whether `holder` is known to have ended: it ran on this machine since it booted, and does not any more."""
    here = identity(proc)
    if not all(here.get(name) and here.get(name) == holder.get(name) for name in _SAME_MACHINE):
        return False
    pid = holder.get("pid", "")
    try:
        return not pid.isdigit() or _started(proc, pid) != holder.get("started")
    except FileNotFoundError:
        return (proc / "1" / "stat").exists()  # else others' processes are hidden here, and nothing is known
    except OSError:
        return False


def _started(proc: Path, pid: str) -> str:
    text = (proc / pid / "stat").read_text(errors="replace")
    fields = text.rpartition(")")[2].split()  # the command's name before it may hold anything
    if fields[0] == "Z":
        raise FileNotFoundError(pid)  # it ended, and only its parent has not noticed yet
    return fields[_STARTED - 2]
