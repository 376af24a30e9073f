"""How much memory the job may use: what its container allows, or what the machine has."""

import os
import re
from pathlib import Path

_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""Where a container finds its limit in its cgroup: version 2, version 1."""


def limit(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that may be used in all, or None where nothing tells."""
    total = re.search(r"^MemTotal:\s*(\d+) kB", _text(meminfo), re.M)
    known = [int(total[1]) * 1024] if total else []
    known += [int(text) for text in (_text(cgroup / name).strip() for name in _LIMITS) if text.isdecimal()]
    return min(known, default=None)


def shared(folder: Path = Path("/dev/shm")) -> int | None:  # noqa: S108 (asked for its size alone)
    """Bytes of shared memory in all, or None where there is none."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return None
    return found.f_frsize * found.f_blocks


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
