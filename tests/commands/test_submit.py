"""Waiting for a submitted job: what is printed, how many failures are tolerated, and what ends it."""

import json
from collections.abc import Iterator

import pytest

import entrypoint
from inat_job import events
from inat_job.commands import submit
from inat_job.errors import JobError, Preempted, TransientError
from inat_job.platforms.k8s import submit_k8s
from inat_job.platforms.submission import State, SubmitOptions, our_code
from inat_job.run.run_state import run_config
from inat_job.storage import open_store


class ScriptedJob:
    """A job whose looks return given states and errors."""

    name = "scripted"

    def __init__(self, *looks: State | JobError) -> None:
        self._looks: Iterator[State | JobError] = iter(looks)

    def read_state(self) -> State:
        found = next(self._looks)
        if isinstance(found, JobError):
            raise found
        return found


def never() -> bool:
    return False


DONE = State("Done", code=0)


def test_wait_prints_each_line_and_state_once(capsys: pytest.CaptureFixture[str]) -> None:
    looks = State("Pending"), State("Running", ("a", "b")), State("Running", ("c",)), DONE
    assert submit.wait(ScriptedJob(*looks), never, 0.0) == DONE
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith("{")] == ["a", "b", "c"]
    assert sum('"state"' in line for line in lines) == 3


@pytest.mark.parametrize("failures", [1, 23])
def test_wait_survives_passing_failures(failures: int) -> None:
    assert submit.wait(ScriptedJob(*[TransientError("away")] * failures, DONE), never, 0.0) == DONE


def test_wait_gives_up_on_lasting_failures() -> None:
    with pytest.raises(TransientError):
        submit.wait(ScriptedJob(*[TransientError("away")] * 24, DONE), never, 0.0)


def test_wait_counts_failures_in_a_row() -> None:
    failures = [TransientError("away")] * 20
    assert submit.wait(ScriptedJob(*failures, State("Running"), *failures, DONE), never, 0.0) == DONE


def test_stop_while_waiting_leaves_the_job() -> None:
    with pytest.raises(Preempted, match="continues by itself"):
        submit.wait(ScriptedJob(State("Running")), lambda: True, 60.0)


def test_container_exit_codes() -> None:
    assert [our_code(code) for code in (0, 1, 2, 65, 75, 77, 78, 143)] == [0, 1, 2, 65, 75, 77, 78, 143]
    assert [our_code(code) for code in (137, 127, 139)] == [75, 1, 1]


def test_wait_in_text(capsys: pytest.CaptureFixture[str]) -> None:
    events.configure(text=True)
    looks = State("Pending", reason="no room"), State("Running", ("a",)), DONE
    assert submit.wait(ScriptedJob(*looks), never, 0.0) == DONE
    assert capsys.readouterr() == ("a\n", "scripted: Pending (no room)\nscripted: Running\nscripted: Done\n")


@pytest.mark.parametrize(
    ("words", "extras"),
    [
        ("partb --data s3://b/x.zip", ""),
        ("partb --tracker tensorboard,mlflow", "mlflow tensorboard"),
        ("parta --data s3://b/x.parquet", "parquet"),
        ("parta --labels s3://b/labels.parquet", "parquet"),
        ("parta --data https://h/x.parquet?download=true", "parquet"),
        ("sweep --part a --storage postgresql://h/s --tracker mlflow", "mlflow postgresql"),
        ("partb --backbone timm/resnet50", "timm"),
        ("sweep --part a", ""),
    ],
)
def test_extras_that_a_command_needs_are_told(words: str, extras: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = [*words.split(), "--output", "s3://b/runs"]
    submit.run("k8s", SubmitOptions(dry_run=True), line, entrypoint._line, never)
    assert (f'an image built with --build-arg EXTRAS=\\"{extras}\\".' in capsys.readouterr().out) == bool(extras)


@pytest.mark.parametrize("target", ["k8s", "batch", "sagemaker"])
@pytest.mark.parametrize("env", [(), ("MLFLOW_TRACKING_URI=http://host:5000",)], ids=["without", "with"])
def test_missing_address_of_mlflow_is_told(
    target: str, env: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["parta", "--tracker", "mlflow", "--output", "s3://b/runs"]
    submit.run(target, SubmitOptions(dry_run=True, env=env), line, entrypoint._line, never)
    assert ("--tracker mlflow needs --env MLFLOW_TRACKING_URI=" in capsys.readouterr().out) == (not env)


@pytest.mark.parametrize("words", [(), ("--seed", "1")], ids=["the same run", "another run"])
def test_finished_run_costs_no_machine(
    s3_bucket: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = []
    monkeypatch.setattr(submit_k8s, "submit", lambda *_: sent.append(1) or ScriptedJob())
    line = ["parta", "--output", f"s3://{s3_bucket}/runs"]
    command = submit.checked(line, entrypoint._line)
    store = open_store(f"s3://{s3_bucket}/runs/{command.name}")
    store.put("config.json", json.dumps(run_config(command.configuration.settings, {}, "train")).encode())
    request = SubmitOptions(image="x", role="arn:aws:iam::123456789012:role/job", name=command.name)
    submit.run("k8s", request, [*line, *words], entrypoint._line, never)
    assert sent == [1], "not finished yet"
    store.put("report.json", b'{"status": "done"}')
    capsys.readouterr()
    submit.run("k8s", request, [*line, *words], entrypoint._line, never)
    assert len(sent) == (2 if words else 1)
    assert ("nothing is submitted: see s3://" in capsys.readouterr().out) == (not words)


@pytest.mark.parametrize(
    "given", [{"env": ("AWS_ENDPOINT_URL=http://minio:9000",)}, {"env_from_secret": ("minio",)}, {"pvc": ("r:/X",)}]
)
def test_run_that_is_finished_in_another_store_is_submitted(
    given: dict[str, tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = []
    monkeypatch.setattr(submit_k8s, "submit", lambda *_: sent.append(1) or ScriptedJob())
    monkeypatch.setattr(submit, "is_finished", lambda *_: True)
    output = "file:///X/runs" if "pvc" in given else "s3://bucket/runs"
    request = SubmitOptions(image="x", role="arn:aws:iam::123456789012:role/job", name="r", **given)
    submit.run("k8s", request, ["parta", "--output", output], entrypoint._line, never)
    assert sent == [1]
