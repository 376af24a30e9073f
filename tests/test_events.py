"""Lines for machines: pure JSON on stdout, each of which says whose it is, and metrics beside them."""

import json
from collections.abc import Iterator

import pytest

from inat_job import events, watchdog
from inat_job.job_status import STATUS
from inat_job.telemetry import metric_lines


@pytest.fixture(autouse=True)
def facts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(events, "terminal", lambda: False)
    yield
    watchdog.watched_by(None)


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return dict(json.loads(capsys.readouterr().out))


def test_a_line_says_whose_it_is_as_far_as_that_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    events.emit("first")
    line = said(capsys)
    assert (line["event"], line["rank"], "run_id" in line, "step" in line) == ("first", 0, False, False)
    STATUS.run_id, STATUS.rank, STATUS.phase, STATUS.step = "r", 3, "train", 17
    events.warn("Hot.", degrees=90)
    line = said(capsys)
    del line["time"]
    facts = {"run_id": "r", "rank": 3, "phase": "train", "step": 17}
    assert line == {"event": "warning", **facts, "message": "Hot.", "degrees": 90}


def test_a_field_of_its_own_goes_before(capsys: pytest.CaptureFixture[str]) -> None:
    STATUS.step = 17
    events.emit("checkpoint", step=10)
    assert said(capsys)["step"] == 10


def test_metrics_leave_stdout_to_json_and_come_of_the_first_rank_alone(capsys: pytest.CaptureFixture[str]) -> None:
    events.write_metrics(metric_lines.lines({"val_accuracy": 0.7123, "epoch": 1}))
    assert capsys.readouterr() == ("", "metric val_accuracy=0.7123\n")
    STATUS.rank = 1
    events.write_metrics(metric_lines.lines({"val_accuracy": 0.7123}))
    assert capsys.readouterr() == ("", "")


def test_a_person_gets_no_metric_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "terminal", lambda: True)
    events.write_metrics(["metric val_accuracy=0.7123"])
    events.emit("epoch", val_accuracy=0.7123)
    assert capsys.readouterr() == ("", "\r\033[Kepoch  val_accuracy=0.7123\n")


def test_progress_beats_when_there_is_some(monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[None] = []
    monkeypatch.setattr(watchdog, "AT_MOST_EVERY_S", 0.0)
    watchdog.watched_by(lambda: beats.append(None))
    show = events.progress("pull")
    for done in (0, 0, 0, 5, 5):
        show(done, 9)
    assert len(beats) == 2
