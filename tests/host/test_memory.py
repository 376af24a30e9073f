"""The memory limit, read from files as the kernel writes them."""

from pathlib import Path

import pytest

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
def test_the_smaller_of_container_and_machine_counts(tmp_path: Path, file: str, text: str, expected: int) -> None:
    (tmp_path / "meminfo").write_text(MEMINFO)
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    assert limit_bytes(tmp_path, tmp_path / "meminfo") == expected


def test_where_nothing_tells_nothing_is_known(tmp_path: Path) -> None:
    assert limit_bytes(tmp_path, tmp_path / "none") is None


def test_this_machine_has_some() -> None:
    found = limit_bytes()
    assert found is None or found > 2**20
