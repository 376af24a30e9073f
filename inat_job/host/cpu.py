"""How many processors the job may use: those that its container and its CPU affinity allow, not those of the host."""

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from inat_job.host.system_files import read_text


def available_cpus(cgroup: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Processors that the job may use, at least one; a fraction is rounded up.

    The smallest quota of the job's own cgroup and its parents counts, in cgroup version 2 and 1:
    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    """
    quotas = [_quota_v2(folder) for folder in _cgroup_folders(cgroup, _cgroup_path(own, ""))]
    for name in ("cpu", "cpu,cpuacct"):
        quotas += [_quota_v1(folder) for folder in _cgroup_folders(cgroup / name, _cgroup_path(own, "cpu"))]
    return max(1, min([_affinity(), *(math.ceil(quota) for quota in quotas if quota is not None)]))


def thread_count(default: int, environment: Mapping[str, str] = os.environ, processes: int = 1) -> int:
    """Threads for computation: OMP_NUM_THREADS if it is set, else a library's `default` up to the processors available.

    The default is shared by as many `processes` as compute on this machine.
    """
    given = environment.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(given) if given.isdecimal() and int(given) else max(1, min(default, available_cpus()) // processes)


def _affinity() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cgroup_path(own: Path, controller: str) -> str:
    """The path of the job's cgroup, for a controller of version 1, or for version 2 if `controller` is empty."""
    for line in read_text(own).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            return path
    return "/"


def _cgroup_folders(root: Path, path: str) -> Iterator[Path]:
    """The job's own cgroup and its parents. With a cgroup namespace, `root` is already the container's own."""
    inner = PurePosixPath(path.lstrip("/"))
    yield from (root / each for each in (inner, *inner.parents) if ".." not in each.parts)


def _quota_v2(folder: Path) -> float | None:
    return _quota(*[*read_text(folder / "cpu.max").split(), "", ""][:2])


def _quota_v1(folder: Path) -> float | None:
    return _quota(read_text(folder / "cpu.cfs_quota_us").strip(), read_text(folder / "cpu.cfs_period_us").strip())


def _quota(quota: str, period: str) -> float | None:
    """The quota in processors, None without a limit, which is `max` in version 2 and -1 in version 1."""
    if not (quota.isdecimal() and period.isdecimal() and int(period)):
        return None
    return int(quota) / int(period)
