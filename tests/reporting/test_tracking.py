"""The tracker with the real wandb: online to a server on loopback, offline to disk, and without any server."""

import importlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from inat_job.errors import NoPermissionError, UsageError
from inat_job.host.environment import wandb_mode
from inat_job.job_settings import TrackerSettings
from inat_job.reporting import tracking
from inat_job.reporting.tracking import STEP, Tracker, is_logged, open_tracker

sys.path.insert(0, str(Path(__file__).parent))
from inat_job.signals import never
from inat_job.storage import StorageOptions
from inat_job.storage.lease import Lease, acquire
from inat_job.storage.run_folder import RunFolder
from tests.harness import wandb_stub
from tests.harness.run_folders import open_run_folder
from tests.harness.wandb_stub import Recorded, wandb_server

KEY = "0123456789abcdef" * 2 + "cafecafe"
FALLBACK_S = 15.0
DETAILS = {"tags", "group", "notes", "artifacts"}

Open = Callable[..., Tracker]


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The variables of wandb as the container image sets them, a key, and a home that cannot be written to."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "scratch" / name.lower()))
    monkeypatch.setenv("HOME", "/proc/nobody")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    yield monkeypatch
    importlib.import_module("wandb").teardown()


@pytest.fixture
def run(tmp_path: Path, environment: pytest.MonkeyPatch) -> Open:
    """open_tracker with most arguments filled in."""

    def opened(mode: str, **changes: Any) -> Tracker:
        settings = TrackerSettings(project="p", **{name: changes.pop(name) for name in DETAILS & changes.keys()})
        given = {"run_id": "part-a:1", "settings": settings, "folder": tmp_path / "run", "has_key": True}
        config = {"train": {"lr": 0.1}, "part": "a"}
        return open_tracker(mode, **{**given, "config": config, **changes})  # type: ignore[arg-type]

    return opened


@pytest.fixture
def server(environment: pytest.MonkeyPatch) -> Iterator[tuple[Recorded, Any]]:
    with wandb_server() as (recorded, running):
        environment.setenv("WANDB_BASE_URL", recorded.url)
        yield recorded, running


def _train(tracker: Tracker) -> None:
    for step in (1, 2, 3, 2, 3, 4):  # a resumed run repeats steps
        tracker.log({"train_loss": 1 / step}, step)


def test_online_run_ends_with_test_accuracy_on_the_server(run: Open, server: Any, tmp_path: Path) -> None:
    recorded, _ = server
    tracker = run("auto")
    assert (tracker.mode, tracker.run_id) == ("online", "part-a-1")
    assert tracker.url == f"{recorded.url}/tester/p/runs/part-a-1"
    _train(tracker)
    tracker.summary({"test.accuracy": 0.5, "status": "done"})
    tracker.finish(0)
    assert recorded.summary["test.accuracy"] == 0.5
    assert recorded.exit_code == 0
    assert [row[STEP] for row in recorded.history] == [1, 2, 3, 2, 3, 4]
    assert tracker.sync_command is None
    assert not (tmp_path / "run" / "wandb").exists()  # the server has it all


TABLE = ("test_predictions", ["id", "loss"], [["=cmd()\n<b>", 0.5], ["x", 2.0]])


def test_table_reaches_the_server_without_a_request_that_waits(run: Open, server: Any, tmp_path: Path) -> None:
    recorded, _ = server
    tracker = run("online")
    _train(tracker)
    tracker.log_table(*TABLE)
    tracker.finish(0)
    content = next(data for name, data in recorded.files.items() if name.startswith("media/table/test_predictions"))
    assert json.loads(content) == {"columns": TABLE[1], "data": TABLE[2]}
    assert recorded.summary["test_predictions"]["nrows"] == 2
    assert recorded.history[-1][STEP] == 4
    assert not [name for name in recorded.operations if "Artifact" in name]
    assert not list((tmp_path / "scratch").glob("data/**/tmp*"))


def test_table_is_in_the_run_folder_offline(run: Open, tmp_path: Path) -> None:
    tracker = run("offline")
    tracker.log_table(*TABLE)
    tracker.finish(0)
    [path] = (tmp_path / "run" / "wandb").rglob("*.table.json")
    assert json.loads(path.read_bytes())["data"] == TABLE[2]


def test_confusion_matrix_is_wandbs_own_chart(run: Open, server: Any) -> None:
    recorded, _ = server
    tracker = run("online")
    tracker.log_confusion(["a", "b"], [[3, 1], [0, 2]])
    tracker.log_confusion([str(label) for label in range(101)], [])  # too large for a chart
    tracker.finish(0)
    [content] = [data for name, data in recorded.files.items() if name.startswith("media/table/confusion_matrix_table")]
    assert json.loads(content)["data"] == [["a", "a", 3], ["a", "b", 1], ["b", "a", 0], ["b", "b", 2]]
    assert "wandb/confusion_matrix/v1" in recorded.buckets[-1]["config"]
    assert not recorded.artifacts


THUMBNAILS = [np.full((64, 64, 3), value, np.uint8) for value in (0, 255)]


def test_table_of_images_is_an_artifact(run: Open, server: Any) -> None:
    recorded, _ = server
    tracker = run("online")
    tracker.log_image_table(*TABLE, lambda: THUMBNAILS)
    tracker.finish(0)
    [name] = recorded.artifacts
    assert recorded.committed == [name]
    table = json.loads(recorded.files[f"{name}/test_predictions.table.json"])
    assert (table["columns"], [row[1:] for row in table["data"]]) == (["image", *TABLE[1]], TABLE[2])
    sizes = [len(recorded.files[f"{name}/{row[0]['path']}"]) for row in table["data"]]
    assert max(sizes) < 2000
    assert recorded.summary["test_predictions"]["nrows"] == 2


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "model.json").write_bytes(b"{}")
    return folder


def test_model_is_an_artifact_if_asked_for(run: Open, server: Any, model: Path, tmp_path: Path) -> None:
    recorded, _ = server
    for artifacts in (False, True):
        tracker = run("online", artifacts=artifacts)
        tracker.log_model(model)
        assert not recorded.artifacts
        tracker.finish(0)
    assert recorded.committed == ["model-part-a-1"]
    assert recorded.artifacts["model-part-a-1"]["artifactTypeName"] == "model"
    assert recorded.files["model-part-a-1/model.safetensors"] == b"weights"
    assert not [path for path in tmp_path.glob("scratch/data/**/*") if path.is_file()], "a copy of the model"


def test_artifact_that_the_server_refuses_costs_a_warning(
    run: Open, server: Any, model: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    recorded, _ = server
    monkeypatch.setattr(wandb_stub, "_artifact_file", lambda recorded, file: None)
    tracker = run("online", artifacts=True)
    tracker.summary({"test.accuracy": 0.5})
    tracker.log_model(model)
    started = time.monotonic()
    tracker.finish(0)
    assert time.monotonic() - started < FALLBACK_S
    assert "The tracker failed" in capfd.readouterr().out
    assert tracker.sync_command
    assert not recorded.committed


def test_model_and_images_are_no_artifacts_offline(
    run: Open, model: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = run("offline", artifacts=True)
    tracker.log_image_table(*TABLE, lambda: THUMBNAILS)
    tracker.log_model(model)
    tracker.finish(0)
    assert capfd.readouterr().out.count("--wandb-artifacts uploads nothing, because the tracker is offline.") == 1
    assert not [path for path in tmp_path.glob("scratch/data/**/*") if path.is_file()]


def test_server_that_is_silent_at_the_end_costs_no_more_for_an_artifact(
    run: Open, server: Any, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, running = server
    monkeypatch.setattr(tracking, "FINISH_TIMEOUT_S", 1.0)
    tracker = run("online", artifacts=True)
    running.shutdown()  # accepts connections and answers none
    tracker.log_image_table(*TABLE, lambda: THUMBNAILS)
    tracker.log_model(model)
    started = time.monotonic()
    tracker.finish(0)
    assert time.monotonic() - started < FALLBACK_S / 2
    assert tracker.sync_command


def test_tags_group_and_notes_reach_the_server(run: Open, server: Any) -> None:
    recorded, _ = server
    run("online", tags=("a", "b c"), group="g", notes="two\nlines").finish(0)
    sent = recorded.buckets[0]
    assert (sent["tags"], sent["groupName"], sent["notes"]) == (["a", "b c"], "g", "two\nlines")


def test_resumed_run_is_logged_once(run: Open, server: Any) -> None:
    recorded, _ = server
    rows = [({"train_loss": 1 / step}, step) for step in range(1, 7)]
    rows.insert(3, ({"val_loss": 0.7}, 3))
    tracker = run("online")
    for row in rows[:3]:
        tracker.log(*row)
    tracker.finish(143)
    recorded.resumable = True
    tracker = run("online", resumed=True)
    for row in rows[1:]:
        tracker.log(*row)
    tracker.finish(0)
    names = ("train_loss", "val_loss")
    assert rows == [({name: row[name] for name in names if name in row}, row[STEP]) for row in recorded.history]


def test_rows_are_told_from_those_that_are_logged() -> None:
    seen = {STEP: 3, "train_loss": 0.5, "val_loss": 0.9}
    assert is_logged({"train_loss": 9.0}, 2, seen)
    assert is_logged({"train_loss": 0.5}, 3, seen)
    assert not is_logged({"val_loss": 0.8}, 3, seen)
    assert not is_logged({"val_accuracy": 0.8}, 3, seen)
    assert not is_logged({"train_loss": 0.5}, 4, seen)
    assert not is_logged({"train_loss": 0.5}, 1, {})


@pytest.fixture
def images(tmp_path: Path) -> dict[str, tuple[Path, str]]:
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (9, 9), "red").save(tmp_path / name)
    return {"a": (tmp_path / "a.png", "<b>title</b>"), "b": (tmp_path / "b.jpg", "$x$")}


def test_images_are_uploaded_as_they_are(run: Open, server: Any, images: dict[str, tuple[Path, str]]) -> None:
    recorded, _ = server
    tracker = run("online")
    tracker.log_images(images)
    tracker.finish(0)
    for name, (path, _) in images.items():
        [sent] = [data for at, data in recorded.files.items() if at.startswith(f"media/images/pictures/{name}_")]
        assert sent == path.read_bytes()
    assert recorded.summary["pictures/a"]["caption"] == "<b>title</b>"


def test_images_are_in_the_run_folder_offline(run: Open, tmp_path: Path, images: dict[str, tuple[Path, str]]) -> None:
    tracker = run("offline")
    tracker.log_images(images)
    tracker.finish(0)
    found = list((tmp_path / "run" / "wandb").rglob("media/images/pictures/*"))
    assert sorted(path.read_bytes() for path in found) == sorted(path.read_bytes() for path, _ in images.values())


def test_missing_image_does_not_fail_the_job(run: Open, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = run("offline")
    tracker.log_images({"x": (tmp_path / "missing.png", "")})
    tracker.summary({"test.accuracy": 0.5})
    tracker.finish(0)
    assert capsys.readouterr().out.count('"message": "The tracker failed; the job continues without it."') == 1


def test_table_that_fails_does_not_fail_the_job(run: Open, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = run("offline")
    tracker.log_table("x", ["id"], [["a", "one value too many"]])
    tracker.summary({"test.accuracy": 0.5})
    tracker.finish(0)
    assert capsys.readouterr().out.count('"message": "The tracker failed; the job continues without it."') == 1


def test_machine_and_code_are_not_sent_to_the_server(run: Open, server: Any) -> None:
    recorded, _ = server
    tracker = run("online")
    print("a line of output")
    tracker.finish(0)
    assert set(recorded.files) <= {"config.yaml", "wandb-summary.json"}
    received = str(recorded)
    assert socket.gethostname() not in received
    assert "a line of output" not in received


def test_preempted_run_is_marked_preempting_and_failed(run: Open, server: Any) -> None:
    recorded, _ = server
    tracker = run("online")
    tracker.preempting()
    tracker.finish(143)
    assert recorded.preempting
    assert recorded.exit_code == 143


@pytest.mark.soak
def test_dead_server_does_not_delay_the_end(
    run: Open, server: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, running = server
    tracker = run("online")
    running.shutdown()
    running.server_close()
    _train(tracker)
    tracker.summary({"test.accuracy": 0.5})
    started = time.monotonic()
    tracker.finish(0)
    assert time.monotonic() - started < FALLBACK_S
    printed = "".join(capfd.readouterr())
    assert tracker.sync_command
    assert tracker.sync_command in printed
    assert _summary(_records(tmp_path / "run"))["test.accuracy"] == "0.5"
    _assert_no_key(printed, tmp_path)


def _refusing_host(stack: list[Any]) -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def _silent_host(stack: list[Any]) -> str:
    listener = socket.create_server(("127.0.0.1", 0), backlog=50)
    stack.append(listener)

    def accept() -> None:
        while True:
            try:
                stack.append(listener.accept()[0])
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    return f"http://127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.soak
@pytest.mark.parametrize("host", [_refusing_host, _silent_host])
def test_unreachable_server_falls_back_to_offline_within_seconds(
    host: Callable[[list[Any]], str],
    run: Open,
    environment: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    sockets: list[Any] = []
    environment.setenv("WANDB_BASE_URL", host(sockets))
    started = time.monotonic()
    tracker = run("online")
    _train(tracker)
    tracker.finish(0)
    assert time.monotonic() - started < FALLBACK_S
    for each in sockets:
        each.close()
    assert tracker.mode == "offline"
    assert "could not start online" in capfd.readouterr().out
    assert [path.name.partition("-run")[0] for path in (tmp_path / "run" / "wandb").iterdir()] == ["offline"]


def test_offline_run_can_be_uploaded_by_wandb_sync(
    run: Open, server: Any, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    recorded, _ = server
    tracker = run("auto", has_key=False)
    assert (tracker.mode, tracker.url) == ("offline", None)
    _train(tracker)
    tracker.summary({"test.accuracy": 0.5})
    tracker.finish(0)
    assert not recorded.operations
    records = _records(tmp_path / "run")
    config = {item.key: item.value_json for each in records for item in each.run.config.update}
    assert json.loads(config["train"]) == {"lr": 0.1}
    assert _summary(records)["test.accuracy"] == "0.5"
    assert [each.exit.exit_code for each in records if each.HasField("exit")] == [0]
    printed = "".join(capfd.readouterr())
    assert tracker.sync_command
    assert tracker.sync_command in printed
    _assert_no_key(printed, tmp_path)

    command = shlex.split(tracker.sync_command)
    command[0] = str(Path(sys.executable).with_name(command[0]))
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    assert recorded.summary["test.accuracy"] == 0.5


def test_invalid_key_falls_back_to_offline(
    run: Open, environment: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    environment.setenv("WANDB_API_KEY", "notakey")
    tracker = run("online")
    tracker.finish(0)
    assert tracker.mode == "offline"
    assert "notakey" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WANDB_BASE_URL", "not a url"),
        ("WANDB_BASE_URL", "ftp://host"),
        ("WANDB_BASE_URL", "http://[broken"),
        ("WANDB_API_KEY", " "),
        ("WANDB_API_KEY", "two\nlines"),
        ("WANDB_API_KEY", "x" * 500),
    ],
)
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_malformed_key_or_server_is_offline(
    run: Open, environment: pytest.MonkeyPatch, mode: str, name: str, value: str
) -> None:
    environment.setenv(name, value)
    tracker = run(mode)
    _train(tracker)
    tracker.finish(0)
    assert tracker.mode == "offline"
    assert os.environ[name] == value


def test_online_without_a_key_is_no_permission(run: Open) -> None:
    with pytest.raises(NoPermissionError, match="WANDB_API_KEY"):
        run("online", has_key=False)


@pytest.mark.parametrize("mode", ["auto", "offline"])
def test_offline_run_does_not_read_as_a_failure(run: Open, mode: str, capfd: pytest.CaptureFixture[str]) -> None:
    run(mode, has_key=False).finish(0)
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert not [each for each in events if each["event"] == "warning"]
    assert events[-1]["message"] == "The run is tracked offline, in the run folder."


@pytest.mark.parametrize(
    ("variables", "mode"),
    [
        ({"WANDB_MODE": "disabled"}, "off"),
        ({"WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "online"}, "auto"),
        ({"WANDB_DISABLED": "true"}, "off"),
        ({"WANDB_DISABLED": "1"}, "off"),
        ({"WANDB_DISABLED": "false"}, "auto"),
        ({}, "auto"),
    ],
)
def test_variables_of_wandb_decide_auto(variables: dict[str, str], mode: str) -> None:
    assert wandb_mode("auto", variables) == mode
    assert wandb_mode("online", variables) == "online"


def test_signal_handlers_are_not_changed(run: Open) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGWINCH)
    before = [signal.getsignal(number) for number in numbers]
    tracker = run("offline")
    during = [signal.getsignal(number) for number in numbers]
    tracker.finish(0)
    assert before == during == [signal.getsignal(number) for number in numbers]


def test_unwritable_folder_turns_the_tracker_off(run: Open, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    tracker = run("offline", folder=tmp_path / "file" / "run")
    assert (tracker.mode, tracker.run_id, tracker.sync_command) == ("off", None, None)


def test_calls_after_finish_are_ignored(run: Open, capfd: pytest.CaptureFixture[str]) -> None:
    tracker = run("offline")
    tracker.finish(0)
    capfd.readouterr()
    tracker.finish(1)
    tracker.log({"train_loss": 1.0}, 1)
    assert capfd.readouterr() == ("", "")


def test_mode_off_does_not_import_wandb(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from inat_job.reporting.tracking import open_tracker\n"
        "from inat_job.job_settings import TrackerSettings\n"
        "given = dict(run_id='r', settings=TrackerSettings(), folder=Path('.'), config={}, has_key=True)\n"
        "tracker = open_tracker('off', **given)\n"
        "tracker.log({'a': 1.0}, 1); tracker.summary({}); tracker.preempting(); tracker.finish(0)\n"
        "assert tracker.mode == 'off' and 'wandb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_missing_package_is_refused_for_online_and_offline(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: ModuleSpec(name, None))  # a folder called wandb
    with pytest.raises(UsageError, match=f"--wandb {mode} needs the package wandb"):
        open_tracker(mode, run_id="r", settings=TrackerSettings(), folder=tmp_path, config={}, has_key=True)  # type: ignore[arg-type]


def test_missing_package_turns_auto_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    tracker = open_tracker("auto", run_id="r", settings=TrackerSettings(), folder=tmp_path, config={}, has_key=True)
    assert tracker.mode == "off"
    assert "not installed" in capsys.readouterr().out


def _assert_no_key(printed: str, folder: Path) -> None:
    """The key is neither in the output nor in any file, logs and caches included."""
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"train_loss" in written
    assert KEY.encode() not in written
    assert KEY not in printed


def _records(folder: Path) -> list[Any]:
    """The records in the .wandb file of the only run below `folder`, which is a LevelDB log of protobuf records."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = folder.glob("wandb/*/*.wandb")
    data, at, parts, records = path.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # too few bytes for a header: the block ends in padding
            at += left
            continue
        length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last part
            records.append(Record.FromString(parts))
            parts = b""
    return records


def _summary(records: list[Any]) -> dict[str, str]:
    return {item.key: item.value_json for each in records for item in each.summary.update}


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_frozen_tracker_that_goes_on_leaves_the_finished_run_alone(
    kind: str, run: Open, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    output = str(tmp_path / "runs") if kind == "local" else f"s3://{request.getfixturevalue('s3_bucket')}"

    def hold() -> tuple[RunFolder, Lease]:
        folder = open_run_folder(output, "r", StorageOptions(), tmp_path / "spools")
        held = acquire(folder.store, folder.background, 60, {}, lambda holder: True, never)
        folder.fence(held.number, held.check)
        return folder, held

    def tracks(folder: RunFolder) -> Tracker:
        return run("offline", run_id="r", folder=folder.attempt_folder, kept_in=folder.local)

    def stored() -> dict[str, bytes]:
        store = open_run_folder(output, "r", StorageOptions(), tmp_path / "unused").store
        return {entry.key: store.read(entry.key) for entry in store.list("wandb/")}

    folder, _ = hold()
    frozen = tracks(folder)
    frozen.log({"train_loss": 0.5}, 1)
    first = Path(str(frozen.sync_command).split()[-1])
    time.sleep(1.1)  # wandb names its folders by the second
    next_folder, _ = hold()
    assert list((next_folder.local / "wandb").iterdir()), "what the frozen attempt wrote is kept"
    next_folder.join_attempt()
    next_folder.publish_folder("wandb")
    finished = stored()
    assert {key.split("/")[1] for key in finished} == {first.name}
    for step in range(2, 200):
        frozen.log({"train_loss": 1 / step}, step)
    frozen.finish(75)
    folder.join_attempt()
    folder.publish_folder("wandb")
    assert stored() == finished
    assert not folder.attempt_folder.exists()


def test_offline_run_is_kept_where_its_message_says(run: Open, tmp_path: Path) -> None:
    folder = open_run_folder(str(tmp_path), "r", StorageOptions(), tmp_path / "spools")
    tracker = run("offline", run_id="r", folder=folder.attempt_folder, kept_in=folder.local)
    _train(tracker)
    tracker.finish(0)
    folder.join_attempt()
    kept = Path(str(tracker.sync_command).split()[-1])
    assert list(kept.glob("*.wandb"))
    assert [path.name for path in folder.local.iterdir()] == ["wandb"]
