"""Temporary folders that libraries leave to Python's exit to delete, which this job's end by `os._exit` skips."""

import shutil

_folders: set[str] = set()


def delete_at_end(folder: str) -> None:
    """Delete a folder as this process ends."""
    _folders.add(folder)


def delete_all() -> None:
    """Delete the folders, just before the process ends."""
    for folder in _folders:
        shutil.rmtree(folder, ignore_errors=True)
