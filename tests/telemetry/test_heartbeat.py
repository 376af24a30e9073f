"""The heartbeat's figures from what training noted, and the line itself from a thread."""

import json
import time

import pytest

from inat_job import watchdog
from inat_job.job_status import STATUS, JobStatus
from inat_job.telemetry import heartbeat
from inat_job.telemetry.heartbeat import paces


def test_paces_are_of_the_time_between_two_looks() -> None:
    before = JobStatus(images=1000, trained_s=10.0, waited_s=9.0)
    now = JobStatus(images=4000, trained_s=20.0, waited_s=9.5, train_loss=1.25)
    assert paces(before, now) == {"images_per_s": 300.0, "data_wait": 0.05, "train_loss": 1.25}
    assert paces(JobStatus(), before)["images_per_s"] == 100.0


@pytest.mark.parametrize("after", [JobStatus(), JobStatus(images=5, trained_s=1.0), JobStatus(phase="pull")])
def test_no_figure_is_made_up_where_nothing_was_trained(after: JobStatus) -> None:
    assert paces(JobStatus(images=5, trained_s=1.0), after) == {}


def test_a_line_comes_in_any_phase_and_says_how_long_the_work_stands_still(capsys: pytest.CaptureFixture[str]) -> None:
    STATUS.run_id, STATUS.phase = "r", "pull"
    watchdog.beat()
    with heartbeat.beating(0.3):
        time.sleep(0.8)
    out, err = capsys.readouterr()
    first, second = (json.loads(line) for line in out.splitlines())
    assert (first["event"], first["phase"], first["run_id"]) == ("heartbeat", "pull", "r")
    assert 0.2 <= first["still_s"] < second["still_s"]
    assert 0 <= first["device_use"] == first["cpu_use"]
    assert "images_per_s" not in first
    assert err.startswith("metric device_use=")


def test_how_busy_the_processors_are(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inat_job.host.cpu.available", lambda: 1)
    with heartbeat.beating(0.5):
        begun = time.process_time(), time.monotonic()
        while time.monotonic() - begun[1] < 0.7:
            pass
        share = (time.process_time() - begun[0]) / (time.monotonic() - begun[1])
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line["cpu_use"] == pytest.approx(share, abs=0.25)


def test_what_no_driver_tells_is_named_and_not_made_up(capsys: pytest.CaptureFixture[str]) -> None:
    STATUS.device = "mps:0"
    with heartbeat.beating(0.2):
        time.sleep(0.3)
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line["device_use"] is None
    assert "mps:0" in line["unknown"]


@pytest.mark.filterwarnings("ignore")
def test_a_gpu_whose_use_nobody_tells_has_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (25, 100))
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 87)
    assert heartbeat._device("cuda:0", 0.1) == {"device_use": 0.87, "device_memory": 0.75}
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (25, 100))
    said = heartbeat._device("cuda:0", 0.1)  # with torch's own, which has no driver or package to ask here
    if not torch.cuda.is_available():
        assert (said["device_use"], said["device_memory"]) == (None, 0.75)
        assert "how busy cuda:0 is: " in said["unknown"]
