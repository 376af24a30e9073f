"""How many processors the job may use: what its container and its affinity allow, not what the host has."""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath


def available(cgroup: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Processors that may be used, at least one; a share of one counts as one.

    The smallest quota counts of the job's own cgroup and those around it, in version 2 and 1:
    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    quotas = [_version_2(folder) for folder in _folders(cgroup, _path(own, ""))]
    for name in ("cpu", "cpu,cpuacct"):
        quotas += [_version_1(folder) for folder in _folders(cgroup / name, _path(own, "cpu"))]
    return max(1, min([_affinity(), *(math.ceil(quota) for quota in quotas if quota is not None)]))


def threads(usual: int, environment: Mapping[str, str] = os.environ, sharers: int = 1) -> int:
    """Threads to compute with: those that OMP_NUM_THREADS asks for, else a library's `usual` number if allowed.

    Of `sharers` processes that compute on this machine, each gets its share.
    """
    wanted = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(wanted) if wanted.isdecimal() and int(wanted) else max(1, min(usual, available()) // sharers)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _path(own: Path, controller: str) -> str:
    """The job's cgroup as the kernel tells it, of a controller of version 1 or, without one, of version 2."""
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            return path
    return "/"


def _folders(root: Path, path: str) -> Iterator[Path]:
    """The job's own cgroup and those around it; in a container's own namespace, `root` is the container's."""
    inner = PurePosixPath(path.lstrip("/"))
    yield from (root / each for each in (inner, *inner.parents) if ".." not in each.parts)


def _version_2(folder: Path) -> float | None:
    return _share(*[*_text(folder / "cpu.max").split(), "", ""][:2])


def _version_1(folder: Path) -> float | None:
    return _share(_text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip())


def _share(quota: str, period: str) -> float | None:
    """Processors, or None without a limit, for which version 2 says max and version 1 -1."""
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None
    return int(quota) / int(period)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
