"""memory.py: the memory limit of container and machine, and glibc's keeping of freed memory."""

import subprocess
import sys
from pathlib import Path

import pytest

from inat_job.host import memory
from inat_job.host.memory import limit_bytes

MEMINFO = "MemTotal:       25165824 kB\nMemFree:        1 kB\n"


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("memory.max", "314572800\n", 314572800),
        ("memory.max", "max\n", 24 * 2**30),
        ("memory/memory.limit_in_bytes", "1073741824\n", 2**30),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", 24 * 2**30),
        ("else", "1", 24 * 2**30),
    ],
)
def test_smaller_limit_of_container_and_machine(tmp_path: Path, file: str, text: str, expected: int) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert limit_bytes(tmp_path, tmp_path / "meminfo") == expected


def test_unknown_limit(tmp_path: Path) -> None:
    assert limit_bytes(tmp_path, tmp_path / "none") is None


def test_limit_of_this_machine() -> None:
    found = limit_bytes()
    assert found is None or found > 2**20


FAULTS = """
import resource, sys
from inat_job.host import memory
kept = memory.keep_freed_memory({}) if sys.argv[1] == "kept" else True
faults = []
for _ in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(2**26)
    for at in range(0, len(block), 4096):
        block[at] = 1
    del block
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(kept, min(faults[1:]))
"""


def page_faults(how: str) -> tuple[str, int]:
    """Whether memory is kept, and the page faults of filling 64 MiB again."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_kept_memory_is_not_mapped_again() -> None:
    kept, count = page_faults("kept")
    assert kept == "True"
    assert count < 100 < page_faults("not")[1]


def test_other_c_library_keeps_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed_memory({})


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_glibc_variables_take_precedence(name: str) -> None:
    assert not memory.keep_freed_memory({name: "1"})
