"""How much memory the job may use, and what the C library does with freed memory."""

import ctypes
import os
import re
from collections.abc import Mapping
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


_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Names of glibc's malloc.h, see mallopt(3)."""

_GROWTH = 2**26
"""Bytes that the heap grows by at least."""


def keep_freed(environment: Mapping[str, str] = os.environ) -> bool:
    """Let glibc keep what is freed for who asks next; returns whether it does. Its own variables have precedence.

    By itself it gives every large block back to the kernel at once, and so each step of a training on the CPU has its
    tensors mapped and zeroed page by page anew: half of the time of a step of Part A at 128 pixels. The price is
    memory: a quarter more at the peak of Part A, 7 % in a ResNet-18.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    wanted = {_MMAP_MAX: 0, _TRIM_THRESHOLD: -1, _TOP_PAD: _GROWTH}
    return all(mallopt(name, value) == 1 for name, value in wanted.items())
