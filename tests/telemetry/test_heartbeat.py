"""heartbeat.py: training rates between snapshots, and the log lines of the thread."""

import ctypes
import json
import time
from functools import partial
from types import SimpleNamespace

import pytest

from inat_job import watchdog
from inat_job.host import nvidia
from inat_job.host.nvidia import gpu_use
from inat_job.job_status import STATUS, JobStatus
from inat_job.telemetry import heartbeat
from inat_job.telemetry.heartbeat import training_rates


def test_training_rates_between_two_snapshots() -> None:
    before = JobStatus(images=1000, trained_s=10.0, waited_s=9.0)
    now = JobStatus(images=4000, trained_s=20.0, waited_s=9.5, train_loss=1.25)
    assert training_rates(before, now) == {"images_per_s": 300.0, "data_wait": 0.05, "train_loss": 1.25}
    assert training_rates(JobStatus(), before)["images_per_s"] == 100.0


@pytest.mark.parametrize("after", [JobStatus(), JobStatus(images=5, trained_s=1.0), JobStatus(phase="pull")])
def test_no_training_rates_without_training(after: JobStatus) -> None:
    assert training_rates(JobStatus(images=5, trained_s=1.0), after) == {}


def wait_for_lines(capsys: pytest.CaptureFixture[str], count: int) -> tuple[list[str], str]:
    """The first `count` lines on stdout, once they are there, and what is on stderr by then."""
    out = err = ""
    deadline = time.monotonic() + 60
    while out.count("\n") < count:
        assert time.monotonic() < deadline, (out, err)
        time.sleep(0.02)
        more = capsys.readouterr()
        out, err = out + more.out, err + more.err
    return out.splitlines()[:count], err


def test_heartbeat_of_a_hanging_phase(capsys: pytest.CaptureFixture[str]) -> None:
    STATUS.run_id, STATUS.phase = "r", "pull"
    watchdog.beat()
    with heartbeat.emit_heartbeats(0.3):
        out, err = wait_for_lines(capsys, 2)
    first, second, *_ = (json.loads(line) for line in out)
    assert (first["event"], first["phase"], first["run_id"]) == ("heartbeat", "pull", "r")
    assert 0.2 <= first["still_s"] < second["still_s"]
    assert 0 <= first["device_use"] == first["cpu_use"]
    assert "images_per_s" not in first
    assert err.startswith("metric device_use=")


def test_cpu_use_between_two_moments() -> None:
    assert heartbeat.cpu_use((1.0, 100.0), (4.0, 102.0), cpus=2) == 0.75
    assert heartbeat.cpu_use((1.0, 100.0), (1.0, 100.5), cpus=1) == 0


def test_unknown_device_use_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    STATUS.device = "mps:0"
    with heartbeat.emit_heartbeats(0.2):
        [line] = map(json.loads, wait_for_lines(capsys, 1)[0])
    assert line["device_use"] is None
    assert "mps:0" in line["unknown"]


def test_gpu_use_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    uuid = "5e1c7a2b-0000-0000-0000-000000000001"
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (25, 100))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuid))
    monkeypatch.setattr(nvidia, "gpu_use", {f"GPU-{uuid}": 0.87}.__getitem__)
    assert heartbeat._device_use("cuda:0", 0.1) == {"device_use": 0.87, "device_memory": 0.75}
    monkeypatch.setattr(nvidia, "gpu_use", partial(gpu_use, load=missing))
    fields = heartbeat._device_use("cuda:0", 0.1)
    assert (fields["device_use"], fields["device_memory"]) == (None, 0.75)
    assert fields["unknown"] == "how busy cuda:0 is: libnvidia-ml.so.1: cannot open shared object file"


def missing(name: str) -> ctypes.CDLL:
    raise OSError(f"{name}: cannot open shared object file")
