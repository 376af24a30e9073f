"""Reads the small files by which the kernel, the container or the platform describes itself."""

from pathlib import Path


def read_text(path: Path) -> str:
    """The content of a file, with undecodable bytes replaced; empty if there is none or it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
