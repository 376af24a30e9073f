"""Fixtures of this folder's tests."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inat_job.ingest import decode_all
from tests.harness.web_sites import site  # noqa: F401  # a fixture

_READ = """
import resource, sys
from pathlib import Path
from inat_job.ingest.archives import open_archive
from inat_job.errors import JobError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    container = open_archive(Path(sys.argv[1]))
    for _, read in container.load(container.names()):
        read()
except JobError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one item for each image that is decoded."""
    sizes: list[int] = []
    original = decode_all.decode

    def counting(data: bytes, side: int) -> Any:
        sizes.append(len(data))
        return original(data, side)

    monkeypatch.setattr(decode_all, "decode", counting)
    return sizes


@pytest.fixture
def read_in_child() -> Callable[[Path], tuple[int, str]]:
    """Reads an archive in another process; returns the growth of its peak memory in KiB and the error's message."""

    def read(path: Path) -> tuple[int, str]:
        command = [sys.executable, "-c", _READ, str(path)]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        grown, message = done.stdout.split(" ", 1)
        return int(grown), message

    return read
