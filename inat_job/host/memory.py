"""How much memory the job may use, and what the C library does with freed memory."""

import ctypes
import errno
import os
import re
import resource
from collections.abc import Mapping
from pathlib import Path

from inat_job.errors import ConflictError
from inat_job.host.system_files import read_text

_CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")
"""A container's memory limit in its cgroup: version 2, version 1."""

_LEAST_ADDRESS_SPACE = 2 * 10**9
_SHORTAGE = re.compile(r"failed to map segment|[Cc]an(not|'t) allocate memory|bad_alloc|can't start new thread")

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
"""Parameters of glibc's mallopt(3)."""

_TOP_PAD_BYTES = 2**26
"""The heap grows by at least this much at a time."""


def limit_bytes(cgroup: Path = Path("/sys/fs/cgroup"), meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes of memory that the job may use in all, None if unknown."""
    total = re.search(r"^MemTotal:\s*(\d+) kB", read_text(meminfo), re.M)
    limits = [int(total[1]) * 1024] if total else []
    limits += [int(text) for text in (read_text(cgroup / name).strip() for name in _CGROUP_LIMITS) if text.isdecimal()]
    return min(limits, default=None)


def shared_bytes(folder: Path = Path("/dev/shm")) -> int | None:  # noqa: S108 (only its size is read)
    """The size of shared memory in bytes, None if there is none."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return status.f_frsize * status.f_blocks


def require_address_space() -> None:
    """Raise ConflictError if this process may map too little memory even for importing torch.

    numpy's OpenBLAS would end the process with code 1.
    """
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY and limit < _LEAST_ADDRESS_SPACE:
        raise ConflictError(
            f"This process may use {limit / 1e9:.1f} GB of address space, and torch alone needs more than "
            f"{_LEAST_ADDRESS_SPACE / 1e9:.0f} GB: raise the limit (ulimit -v)."
        )


def is_shortage(error: BaseException) -> bool:
    """Whether an error means that memory, address space or threads are exhausted."""
    of_system = isinstance(error, OSError) and error.errno == errno.ENOMEM
    said = isinstance(error, ImportError | RuntimeError) and _SHORTAGE.search(str(error)) is not None
    return isinstance(error, MemoryError) or of_system or said


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
    """Have glibc keep freed memory for the next allocation; returns whether it does.

    glibc's own environment variables take precedence. By default it returns every large block to the kernel at once, so
    that each training step on the CPU maps and zeroes its tensors again, page by page: half of the step time of Part A
    at 128 pixels. The price is memory: 25 % more at the peak of Part A, 7 % for a ResNet-18.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in environment):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    parameters = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1, _M_TOP_PAD: _TOP_PAD_BYTES}
    return all(mallopt(name, value) == 1 for name, value in parameters.items())
