"""cpu.py: available processors, read from cgroup trees as the kernel writes them."""

import os
from pathlib import Path

import pytest

from inat_job.host import cpu

HOST = 64


@pytest.fixture(autouse=True)
def big_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(HOST)), raising=False)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "own", "expected"),
    [
        ({"cpu.max": "400000 100000\n"}, "0::/\n", 4),
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 2),
        ({"cpu.max": "5000 100000\n"}, "0::/\n", 1),
        ({"cpu.max": "max 100000\n"}, "0::/\n", HOST),
        ({"cpu.max": "12800000 100000\n"}, "0::/\n", HOST),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, "1:cpu:/\n", 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "1:cpu:/\n", HOST),
        ({"cpu,cpuacct/cpu.cfs_quota_us": "1\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, "", 1),
        ({"pod/box/cpu.max": "max 100000\n", "pod/cpu.max": "300000 100000\n"}, "0::/pod/box\n", 3),
        (
            {"cpu/docker/a/cpu.cfs_quota_us": "100000\n", "cpu/docker/a/cpu.cfs_period_us": "100000\n"},
            "4:memory:/else\n3:cpu,cpuacct:/docker/a\n0::/\n",
            1,
        ),
        ({"cpu.max": "200000 100000\n"}, "0::/not/seen/in/here\n", 2),
        ({"cpu.max": "200000 100000\n"}, "0::/../../host\n", 2),
        ({"cpu.max": "nonsense"}, "nonsense", HOST),
        ({"cpu.max": "1 0\n"}, "0::/\n", HOST),
        ({}, "", HOST),
    ],
)
def test_smallest_quota_counts(tmp_path: Path, files: dict[str, str], own: str, expected: int) -> None:
    root = tree(tmp_path / "cgroup", {"here": "", **files})
    (tmp_path / "own").write_text(own)
    assert cpu.available_cpus(root, tmp_path / "own") == expected


def test_affinity_limits_available_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    root = tree(tmp_path, {"cpu.max": "400000 100000\n"})
    assert cpu.available_cpus(root, tmp_path / "none") == 1


@pytest.mark.parametrize(("variable", "expected"), [("3", 3), ("4,2", 4), ("", None), ("0", None), ("many", None)])
def test_thread_count_by_omp_num_threads(variable: str, expected: int | None) -> None:
    assert cpu.thread_count(2 * HOST, {"OMP_NUM_THREADS": variable}) == (expected or cpu.available_cpus())


def test_thread_count_of_a_smaller_default() -> None:
    assert cpu.thread_count(1, {}) == 1


def test_available_cpus_of_this_machine() -> None:
    assert 1 <= cpu.available_cpus() <= HOST


def test_thread_count_is_shared_by_processes() -> None:
    assert cpu.thread_count(2 * HOST, {}, processes=2) == max(1, cpu.available_cpus() // 2)
