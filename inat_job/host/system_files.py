"""Reads the small files by which the kernel, the container or the platform describes itself."""

import re
from pathlib import Path

_LAYERS = ("overlay", "fuse-overlayfs")


def read_text(path: Path) -> str:
    """The content of a file, with undecodable bytes replaced; empty if there is none or it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def is_lost_with_container(path: Path, root: Path = Path("/")) -> bool:
    """Whether an absolute path is in a container's own layer or in memory, by the mount points of this process.

    https://man7.org/linux/man-pages/man5/proc_pid_mountinfo.5.html
    """
    kinds = {}
    for line in read_text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        if len(fields := before.split(" ")) > 4 and after:
            kinds[Path(re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), fields[4]))] = after.split(" ")[0]
    if kinds.get(Path("/")) not in _LAYERS:
        return False
    mount = next(each for each in (path, *path.parents, Path("/")) if each in kinds)
    return kinds[mount] in (*_LAYERS, "tmpfs")
