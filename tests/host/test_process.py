"""Whether the holder of a lease still runs, told of real processes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inat_job.host.process import has_ended, identity, start_time

if not Path("/proc/self/ns/pid").exists():
    pytest.skip("needs Linux's /proc", allow_module_level=True)


def test_this_process_is_not_gone() -> None:
    assert not has_ended(identity())
    assert identity()["pid"] == str(os.getpid())


def test_a_process_that_ended_is_gone_and_one_that_runs_is_not() -> None:
    script = "import json; from inat_job.host.process import identity; print(json.dumps(identity())); input()"
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    import json

    holder = json.loads(child.stdout.readline())
    assert not has_ended(holder)
    child.kill()
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        pass
    assert has_ended(holder)  # nobody has waited for it yet
    child.communicate()
    assert has_ended(holder)


def test_another_process_under_the_same_number_is_not_the_holder() -> None:
    assert has_ended(identity() | {"started": "1"})
    assert has_ended(identity() | {"pid": "../1"})


@pytest.mark.parametrize("changes", [{"boot": "another"}, {"namespace": "pid:[1]"}])
def test_of_another_machine_nothing_is_known(changes: dict[str, str]) -> None:
    assert not has_ended(identity() | {"pid": "999999999"} | changes)
    assert not has_ended({})


def test_where_there_is_no_proc_nothing_is_known(tmp_path: Path) -> None:
    assert set(identity(tmp_path)) == {"host", "pid"}
    assert not has_ended(identity(), tmp_path)


def test_the_start_lies_before_what_the_process_did() -> None:
    before = time.perf_counter()
    script = "import time; from inat_job.host.process import start_time; print(start_time(), time.perf_counter())"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    began, then = map(float, done.stdout.split())
    assert before - 0.02 <= began < then


def test_a_start_that_nothing_tells_is_none(tmp_path: Path) -> None:
    assert start_time(tmp_path) is None
