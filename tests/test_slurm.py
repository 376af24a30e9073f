"""The script of docs/slurm.md on a real Slurm of two machines, both this one (needs root, slurmd, munge)."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.children import ENTRYPOINT

pytestmark = pytest.mark.soak

PAGE = Path(__file__).parent.parent / "docs/slurm.md"
SMALL = "--data demo: --image-size 32 --filters 4 --batch-size 16 --epochs 1000 --devices 1 --no-pictures --wandb off"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel")

# A job that is requeued starts when its old credentials have expired: after 120 s by default.
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
StateSaveLocation={folder}/state
PropagateResourceLimits=NONE
NodeName=gpu-01 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2
NodeName=gpu-02 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2
PartitionName=all Nodes=ALL Default=YES State=UP
"""


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    try:
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@contextmanager
def daemons(folder: Path) -> Iterator[None]:
    """Slurm's daemons, which stay in the foreground and end with the block."""
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)
    options = {"key-file": "munge.key", "socket": "munge.sock", "pid-file": "munge.pid"}
    options |= {"log-file": "munge.log", "seed-file": "munge.seed"}
    commands = [
        ["munged", "--foreground", "--force", *(f"--{name}={folder / file}" for name, file in options.items())],
        ["slurmctld", "-D"],
        ["slurmd", "-D", "-N", "gpu-01"],
        ["slurmd", "-D", "-N", "gpu-02"],
    ]
    started = []
    try:
        for command in commands:
            started.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
            time.sleep(0.5)
        yield
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait(30)


def wait_until(holds: Callable[[], object], what: str, timeout_s: float = 120.0) -> None:
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < timeout_s, what
        time.sleep(0.2)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Runs one of Slurm's programs in the test's folder, and returns what it prints."""
    if missing := [name for name in PROGRAMS if not shutil.which(name)]:
        pytest.skip(f"needs {', '.join(missing)}")
    if os.geteuid() != 0:
        pytest.skip("needs root")
    folder = tmp_path / "slurm"
    for name in ("state", "gpu-01", "gpu-02"):
        (folder / name).mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(CONFIGURATION.format(folder=folder, host=host, ports=free_ports(3)))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with daemons(folder):
        try:
            yield run
        finally:
            run("scancel", f"--user={os.geteuid()}")
            wait_until(lambda: not run("squeue", "--noheader"), "no job outlives the test")


def test_stopped_job_is_requeued_and_resumes(slurm: Callable[..., str], tmp_path: Path) -> None:
    example = re.search(r"^```sh\n(#!/bin/bash\n.*?)^```", PAGE.read_text(), re.M | re.S)
    assert example
    script = re.sub(r"--(gpus-per-node|cpus-per-task)=\d+", "", example[1])
    command = f"srun {sys.executable} {ENTRYPOINT} parta {SMALL} --log-format text\n"
    script, count = re.subn(r"srun (?:.*\\\n)*.*\n", command, script)
    assert count == 1
    (tmp_path / "job.sh").write_text(script)
    out = tmp_path / "job.out"

    def said(text: str) -> int:
        return out.read_text().count(text) if out.exists() else 0

    # The machines' names do not resolve here.
    variables = "ALL,MASTER_ADDR=127.0.0.1,OMP_NUM_THREADS=1,INAT_ACCELERATOR=cpu"
    number = slurm("sbatch", "--parsable", f"--output={out}", f"--export={variables}", "job.sh").strip()
    wait_until(lambda: said(" 3/1000"), "the run trains")
    assert said("2 ranks") == 1
    slurm("scancel", "--signal=TERM", number)
    wait_until(lambda: said("Resuming from step"), f"the job is requeued and resumes: {out.read_text()}")
    slurm("scancel", number)
    wait_until(lambda: "CANCELLED" in slurm("scontrol", "show", "job", number), "the job is cancelled")
    wait_until(lambda: said("Exited with exit code 143") == 4, f"both machines stop, twice: {out.read_text()}")
    stored = [int(step) for step in re.findall(r"Stopped: step (\d+) is stored", out.read_text())]
    assert len(stored) == 2
    assert stored[0] < stored[1]
    assert f"Resuming from step {stored[0]} " in out.read_text()
    assert "Restarts=1" in slurm("scontrol", "show", "job", number)


def test_tasks_on_one_machine_are_refused(slurm: Callable[..., str], tmp_path: Path) -> None:
    train = [sys.executable, ENTRYPOINT, "parta", *SMALL.split()]
    done = subprocess.run(["srun", "-N1", "-n2", *train], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 78, done.stderr
    assert done.stderr.count("srun started 2 tasks on 1 machine, ") == 2
    assert not (tmp_path / "runs").exists()
