"""What is freed is used again: the kernel is asked for the pages of a large block once, not at each turn."""

import subprocess
import sys

import pytest

from inat_job.host import memory

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


def faults(how: str) -> tuple[str, int]:
    """Whether memory is kept, and the page faults of filling 64 MiB another time."""
    done = subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True)
    kept, count = done.stdout.split()
    return kept, int(count)


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_a_large_block_is_mapped_once() -> None:
    kept, again = faults("kept")
    assert kept == "True"
    assert again < 100 < faults("not")[1]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert not memory.keep_freed_memory({})


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "GLIBC_TUNABLES"])
def test_who_sets_it_has_precedence(name: str) -> None:
    assert not memory.keep_freed_memory({name: "1"})
