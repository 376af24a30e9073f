"""process.py: the identity, start and end of real processes."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from inat_job.host.process import command_prefix, has_ended, identity, start_time

if not Path("/proc/self/ns/pid").exists():
    pytest.skip("needs Linux's /proc", allow_module_level=True)


def test_this_process_has_not_ended() -> None:
    assert not has_ended(identity())
    assert identity()["pid"] == str(os.getpid())


def test_has_ended_after_a_kill() -> None:
    script = "import json; from inat_job.host.process import identity; print(json.dumps(identity())); input()"
    root = Path(__file__).parents[2]
    child = subprocess.Popen(
        [sys.executable, "-c", script], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    holder = json.loads(child.stdout.readline())
    assert not has_ended(holder)
    child.kill()
    while Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.005)
    assert has_ended(holder)  # a zombie
    child.communicate()
    assert has_ended(holder)


def test_reused_process_id_is_another_process() -> None:
    assert has_ended(identity() | {"started": "1"})
    assert has_ended(identity() | {"pid": "../1"})


@pytest.mark.parametrize("changes", [{"boot": "another"}, {"namespace": "pid:[1]"}])
def test_process_of_another_machine_is_unknown(changes: dict[str, str]) -> None:
    assert not has_ended(identity() | {"pid": "999999999"} | changes)
    assert not has_ended({})


def test_unknown_without_proc(tmp_path: Path) -> None:
    assert set(identity(tmp_path)) == {"host", "pid"}
    assert not has_ended(identity(), tmp_path)


def test_start_time_is_before_the_first_statement() -> None:
    before = time.perf_counter()
    script = "import time; from inat_job.host.process import start_time; print(start_time(), time.perf_counter())"
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", script], cwd=root, stdout=subprocess.PIPE, text=True, check=True)
    started, then = map(float, done.stdout.split())
    assert before - 0.02 <= started < then


def test_start_time_without_proc(tmp_path: Path) -> None:
    assert start_time(tmp_path) is None


def test_command_prefix_is_what_was_typed_before_the_arguments() -> None:
    typed = ["python", "-u", "entrypoint.py", "parta", "--epochs", "3"]
    assert command_prefix(typed, ["parta", "--epochs", "3"]) == ["python", "-u", "entrypoint.py"]
    assert command_prefix(typed[:3], []) == typed[:3]
    assert command_prefix(typed[:1], ["parta"]) == []  # arguments that the program has set itself


def test_command_prefix_of_an_installed_command_is_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (command := tmp_path / "inat-job").touch(mode=0o755)
    typed = ["/venv/bin/python", str(command), "parta"]
    assert command_prefix(typed, ["parta"]) == typed[:2]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command_prefix(typed, ["parta"]) == ["inat-job"]


def test_aborting_children_of_a_job_write_no_core(tmp_path: Path) -> None:
    child = "import os, resource, sys; print(resource.getrlimit(resource.RLIMIT_CORE)[0], flush=True); os.abort()"
    parent = (
        "import os, resource, subprocess, sys\n"
        "from inat_job.host.process import disable_core_dumps\n"
        "hard = resource.getrlimit(resource.RLIMIT_CORE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))\n"
        "if sys.argv[1] == 'off': disable_core_dumps()\n"
        f"pid = subprocess.Popen([sys.executable, '-c', {child!r}], cwd=sys.argv[2]).pid\n"
        "status = os.waitpid(pid, 0)[1]\n"
        "print(os.WTERMSIG(status), os.WCOREDUMP(status), resource.getrlimit(resource.RLIMIT_CORE)[1] == hard)\n"
    )
    found = {}
    for mode in ("on", "off"):
        command = [sys.executable, "-c", parent, mode, str(tmp_path)]
        root = Path(__file__).parents[2]
        found[mode] = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout.split()
    assert found["off"] == ["0", "6", "False", "True"]
    if found["on"][0] == "0":
        pytest.skip("this machine's hard limit forbids cores")
    assert found["on"][1] == "6"
    assert [path.name for path in tmp_path.iterdir()] == [] or found["on"][2] == "True"
