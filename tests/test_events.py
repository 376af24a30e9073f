"""The JSON log: one object a line on stdout, each with the run's status, and metrics on stderr."""

import json
from collections.abc import Iterator

import pytest

from inat_job import events, watchdog
from inat_job.job_status import STATUS
from inat_job.telemetry import metric_lines


@pytest.fixture(autouse=True)
def no_watcher() -> Iterator[None]:
    yield
    watchdog.watched_by(None)


def logged(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    return dict(json.loads(capsys.readouterr().out))


def test_json_line_has_the_known_status(capsys: pytest.CaptureFixture[str]) -> None:
    events.emit("first")
    line = logged(capsys)
    assert (line["event"], line["rank"], "run_id" in line, "step" in line) == ("first", 0, False, False)
    STATUS.run_id, STATUS.rank, STATUS.phase, STATUS.step = "r", 3, "train", 17
    events.warn("Hot.", degrees=90)
    line = logged(capsys)
    del line["time"]
    known = {"run_id": "r", "rank": 3, "phase": "train", "step": 17}
    assert line == {"event": "warning", **known, "message": "Hot.", "degrees": 90}


def test_event_field_overrides_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    STATUS.step = 17
    events.emit("checkpoint", step=10)
    assert logged(capsys)["step"] == 10


def test_metrics_go_to_stderr_of_rank_0(capsys: pytest.CaptureFixture[str]) -> None:
    events.write_metrics(metric_lines.lines({"val_accuracy": 0.7123, "epoch": 1}))
    assert capsys.readouterr() == ("", "metric val_accuracy=0.7123\n")
    STATUS.rank = 1
    events.write_metrics(metric_lines.lines({"val_accuracy": 0.7123}))
    assert capsys.readouterr() == ("", "")


def test_text_goes_to_stderr_without_metrics(capsys: pytest.CaptureFixture[str]) -> None:
    events.configure(text=True)
    events.write_metrics(["metric val_accuracy=0.7123"])
    events.warn("Hot.")
    events.emit("heartbeat", still_s=1)
    assert capsys.readouterr() == ("", "Warning: Hot.\n")


@pytest.mark.parametrize("text", [False, True])
def test_quiet_leaves_warnings_and_the_last_line(capsys: pytest.CaptureFixture[str], text: bool) -> None:
    events.configure(text=text, quiet=True)
    events.phase("pull")
    events.progress("pull")(1, 2)
    events.emit("resume", step=3, epoch=1, epochs=2, ended="")
    events.warn("Hot.")
    events.emit("done", message="Prepared.")
    out, err = capsys.readouterr()
    lines = err.splitlines() if text else [json.loads(line)["message"] for line in out.splitlines()]
    assert lines == (["Warning: Hot.", "Prepared."] if text else ["Hot.", "Prepared."])


@pytest.mark.parametrize("text", [False, True])
def test_other_ranks_log_warnings_only(capsys: pytest.CaptureFixture[str], text: bool) -> None:
    events.configure(text=text)
    events.only_warnings()
    events.phase("pull")
    events.progress("pull")(1, 2)
    events.emit("done", message="Prepared.")
    assert capsys.readouterr() == ("", "")
    events.warn("Hot.")
    assert "Hot." in "".join(capsys.readouterr())


def test_verbose_adds_details(capsys: pytest.CaptureFixture[str]) -> None:
    for verbose in (False, True):
        events.configure(text=True, verbose=verbose)
        events.emit("checkpoint", step=10, seconds=0.5, bytes=20_000_000)
        events.emit("allocator", keeps_freed=True)
    assert capsys.readouterr().err == (
        "Checkpoint of step 10: 20.0 MB, stored in 0.50 s\nallocator: keeps_freed True\n"
    )


def test_progress_lines_are_rare(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    show = events.progress("pull")
    for done in range(5):
        show(done, 4)
    [line] = map(json.loads, capsys.readouterr().out.splitlines())
    assert (line["event"], line["of"], line["done"], line["total"]) == ("progress", "pull", 4, 4)


def test_progress_that_another_process_draws_has_what_a_bar_needs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_DRAWN_EVERY_S", 0.0)
    events.configure(text=False, drawn=True)
    show = events.progress("epoch 1/2", transient=True)
    for done in range(5):
        show(done, 4, "loss 1.0")
    lines = [*map(json.loads, capsys.readouterr().out.splitlines())]
    assert [line["done"] for line in lines] == [0, 1, 2, 3, 4]
    assert {(line["transient"], line["note"]) for line in lines} == {(True, "loss 1.0")}


def test_progress_beats_when_it_advances(monkeypatch: pytest.MonkeyPatch) -> None:
    beats: list[None] = []
    monkeypatch.setattr(watchdog, "AT_MOST_EVERY_S", 0.0)
    watchdog.watched_by(lambda: beats.append(None))
    show = events.progress("pull")
    for done in (0, 0, 0, 5, 5):
        show(done, 9)
    assert len(beats) == 2
