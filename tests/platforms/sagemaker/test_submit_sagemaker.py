"""submit_sagemaker.py: the request to SageMaker, how the job reads it, and the exit code of its status."""

import json
import re
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto import mock_aws

from entrypoint import _line
from inat_job.command_options import SweepOptions
from inat_job.commands.submit import checked
from inat_job.configuration import SWEEP_TAKES
from inat_job.errors import ConflictError, UsageError
from inat_job.options import parse_section
from inat_job.platforms.platform import Platform
from inat_job.platforms.sagemaker import submit_sagemaker
from inat_job.platforms.sagemaker.submit_sagemaker import exit_code_of
from inat_job.platforms.settings_layer import configured, part_of, sweep_of
from inat_job.platforms.submission import State, SubmitOptions, completed
from inat_job.search.definition import definition_of, sweep_id
from inat_job.search.space import space_of
from inat_job.telemetry import metric_lines

ROLE = "arn:aws:iam::123456789012:role/birds"
OPTIONS: dict[str, Any] = {"image": "1.dkr.ecr.eu-west-1.amazonaws.com/birds:1", "role": ROLE}
WORDS = ("parta", "--output", "s3://bucket/runs", "--seed", "3")


SEARCH = ("sweep", "--part", "b", "--output", "s3://bucket/runs")


def built(*words: str, **options: Any) -> dict[str, Any]:
    command = checked(words or WORDS, _line)
    request = completed(SubmitOptions(**{**OPTIONS, **options}), command, submit_sagemaker.NEEDS)
    [document] = submit_sagemaker.build(request, command)
    return document


def test_request_from_options() -> None:
    request = built(nodes=2, instance_type="ml.p4d.24xlarge", disk=500, timeout=3600.0, tags=("team=birds",))
    name = request["TrainingJobName"]
    assert request["HyperParameters"] == {"part": "a", "seed": "3", "output": "s3://bucket/runs", "run-id": name}
    assert request["AlgorithmSpecification"]["TrainingInputMode"] == "File"
    assert request["RoleArn"] == ROLE
    assert request["OutputDataConfig"] == {"S3OutputPath": "s3://bucket/runs"}
    machines = {"InstanceType": "ml.p4d.24xlarge", "InstanceCount": 2, "VolumeSizeInGB": 500}
    assert request["ResourceConfig"] == machines
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600}
    assert request["CheckpointConfig"] == {
        "S3Uri": f"s3://bucket/runs/{name}/opt-ml",
        "LocalPath": "/opt/ml/checkpoints",
    }
    assert request["Tags"] == [{"Key": "team", "Value": "birds"}]
    assert "Environment" not in request


def test_patch_and_variables(tmp_path: Path) -> None:
    patch = tmp_path / "patch.yaml"
    patch.write_text(
        """
VpcConfig: {SecurityGroupIds: [sg-1], Subnets: [subnet-1]}
ResourceConfig: {KeepAlivePeriodInSeconds: 600}
RetryStrategy: null
Environment: {B: "2"}
Tags: [{Key: team, Value: bats}, {Key: cost, Value: "1"}]
"""
    )
    plain = built(tags=("team=birds",), env=("A=1",))
    request = built(tags=("team=birds",), env=("A=1",), patch=str(patch))
    assert plain["Environment"] == {"A": "1"}
    assert request["Environment"] == {"A": "1", "B": "2"}
    assert request["VpcConfig"] == {"SecurityGroupIds": ["sg-1"], "Subnets": ["subnet-1"]}
    assert request["ResourceConfig"] == {**plain["ResourceConfig"], "KeepAlivePeriodInSeconds": 600}
    assert request["Tags"] == [{"Key": "team", "Value": "bats"}, {"Key": "cost", "Value": "1"}]
    changed = ("VpcConfig", "ResourceConfig", "RetryStrategy", "Environment", "Tags")
    assert {key: value for key, value in request.items() if key not in changed} == {
        key: value for key, value in plain.items() if key not in changed
    }


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ("TrainingJobName: x", "--patch changes TrainingJobName, which names the run"),
        ("HyperParameters: {seed: '7'}", "--patch changes HyperParameters, which is the command"),
        ("AlgorithmSpecification: {ContainerEntrypoint: [sh]}", "ContainerEntrypoint, which is the command"),
        ("ResourceConfig: {InstanceCount: 2}", "which is --nodes"),
        ("Environment: {INAT_SEED: '7'}", "--patch changes INAT_SEED, a variable of the job itself"),
        ("VpcConfig: {Subnets: [s-1]}", 'Missing required parameter in VpcConfig: "SecurityGroupIds"'),
        ("RoleArn: null", 'Missing required parameter in input: "RoleArn"'),
        ("Vpc: {}", "Unknown parameter in input"),
    ],
)
def test_invalid_patches_are_refused(tmp_path: Path, patch: str, message: str) -> None:
    (tmp_path / "patch.json").write_text(patch)
    with pytest.raises(UsageError, match=re.escape(message)):
        built(patch=str(tmp_path / "patch.json"))


def test_spot_maximum_wait() -> None:
    request = built(spot=True, timeout=3600.0)
    assert request["EnableManagedSpotTraining"] is True
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}


def test_metric_definitions_read_one_metric_each() -> None:
    definitions = {each["Name"]: each["Regex"] for each in built()["AlgorithmSpecification"]["MetricDefinitions"]}
    for name, regex in definitions.items():
        lines = zip(metric_lines.NAMES, metric_lines.lines(dict.fromkeys(metric_lines.NAMES, 0.25)), strict=True)
        found = {other for other, line in lines if re.search(regex, line)}
        assert found == {name}


OPTION_VALUES = st.fixed_dictionaries(
    {},
    optional={
        "--epochs": st.integers(1, 500).map(str),
        "--lr": st.floats(1e-6, 1.0).map(str),
        "--max-time": st.sampled_from(["90m", "1h30m", "77"]),
        "--filters": st.lists(st.integers(1, 64).map(str), min_size=5, max_size=5).map(",".join),
        "--augment": st.none(),
        "--no-batch-norm": st.none(),
        "--compile": st.none(),
        "--seed": st.integers(0, 2**31 - 1).map(str),
        "--wandb": st.sampled_from(["off", "offline"]),
        "--data": st.sampled_from(["demo:", "s3://b/k.zip#sha256=" + "0" * 64]),
    },
)


@settings(deadline=None, max_examples=50)
@given(OPTION_VALUES)
def test_hyperparameters_give_the_same_settings(options: dict[str, str | None]) -> None:
    words = [word for flag, value in options.items() for word in ([flag] if value is None else [flag, value])]
    hyperparameters = built("parta", "--output", "s3://bucket/runs", *words, name="birds")["HyperParameters"]
    assert all(isinstance(value, str) for value in hyperparameters.values())
    platform = Platform("SageMaker", hyperparameters=hyperparameters)
    in_the_job = configured(platform, part_of(platform), {}, [], None).settings
    here = checked(("parta", "--output", "s3://bucket/runs", "--run-id", "birds", *words), _line).configuration
    assert in_the_job == here.settings


def test_set_option_becomes_a_hyperparameter() -> None:
    assert built(*WORDS, "--set", "train.lr=0.5")["HyperParameters"]["lr"] == "0.5"
    assert built("partb", *WORDS[1:], "--strategy", "full")["HyperParameters"]["part"] == "b"


@pytest.mark.parametrize(
    ("options", "words", "message"),
    [
        ({"gpus": 2}, WORDS, "--gpus"),
        ({"queue": "q"}, WORDS, "--queue"),
        ({"cpus": 2}, WORDS, "--cpus"),
        ({"role": "birds"}, WORDS, "--role is 'birds'"),
        ({"instance_type": "g5.xlarge"}, WORDS, "InstanceType"),
        ({"retries": 31}, WORDS, "--retries is 31"),
        ({}, ("prepare", "--data", "demo:"), "use parta, partb, sweep"),
        ({}, ("parta",), "--output is not set"),
        ({}, (*SEARCH, "--space", f"train.lr = false  # {'x' * 2500}"), "2500"),
    ],
)
def test_invalid_or_unused_options_are_refused(options: dict[str, Any], words: tuple[str, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        built(*words, **options)


SWEEP = (*SEARCH, "--max-time", "2h", "--trials", "9", "--lr", "0.01")


def test_hyperparameters_give_the_same_sweep(tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text("[train.ema]\nchoices = [0.0, 0.9]\n")
    words = (*SWEEP, "--storage", "postgresql://host/x", "--no-augment", "--space", str(tmp_path / "space.toml"))
    request = built(*words)
    asked = request["HyperParameters"]
    assert (asked["command"], asked["part"], asked["run-id"]) == ("sweep", "b", request["TrainingJobName"])
    place = Platform("SageMaker", run_id="other", hyperparameters=asked)
    here = checked(words, _line)
    sweep = sweep_of(place)
    assert sweep is not None
    assert parse_section(SweepOptions, sweep) == here.sweep
    in_the_job = configured(place, part_of(place), {}, [], None, SWEEP_TAKES)
    assert in_the_job.settings.train == here.configuration.settings.train
    assert in_the_job.settings.run.run_id == request["TrainingJobName"]
    space = space_of(in_the_job.settings, asked["space"], in_the_job.given)
    assert "train.ema" in space
    assert sweep_id(definition_of(in_the_job.settings, here.sweep, space)) == here.run_id  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"command": "swep"}, "command is 'swep': set it to sweep"),
        ({"command": "sweep", "trial": "3"}, "there is no setting 'trial'"),
        ({"command": "sweep", "export": "onnx"}, "there is no setting 'export'"),
    ],
)
def test_invalid_hyperparameters_of_a_sweep_are_refused(asked: dict[str, str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        configured(Platform("SageMaker", hyperparameters=asked), "a", {}, [], None, SWEEP_TAKES)


def test_each_worker_is_a_training_job() -> None:
    command = checked(SWEEP, _line)
    request = completed(SubmitOptions(**OPTIONS, workers=3, name="birds"), command, submit_sagemaker.NEEDS)
    documents = submit_sagemaker.build(request, command)
    assert [each["TrainingJobName"] for each in documents] == ["birds-worker-1", "birds-worker-2", "birds-worker-3"]
    assert len({each["CheckpointConfig"]["S3Uri"] for each in documents}) == 3
    assert all(each["HyperParameters"] == documents[0]["HyperParameters"] for each in documents)
    assert documents[0]["HyperParameters"]["run-id"] == "birds"
    assert json.loads(submit_sagemaker.as_text(documents)) == documents


@pytest.mark.parametrize(
    ("codes", "code"), [([None, None], None), ([None, 0], 0), ([75, None], None), ([75, 0], 0), ([75, 78], 78)]
)
def test_sweep_is_done_with_its_first_worker(codes: list[int | None], code: int | None) -> None:
    class Job:
        name = "training job x"

        def __init__(self, code: int | None) -> None:
            self.code = code

        def read_state(self) -> State:
            return State("Training", (f"line of {self.code}",), self.code)

    state = submit_sagemaker.TrainingJobs([Job(each) for each in codes]).read_state()  # type: ignore[misc]
    assert (state.code, state.lines) == (code, tuple(f"line of {each}" for each in codes))


def test_submit_creates_a_job_for_each_worker(account: Any) -> None:
    command = checked(SWEEP, _line)
    request = completed(SubmitOptions(**OPTIONS, workers=2), command, submit_sagemaker.NEEDS)
    submit_sagemaker.submit(request, submit_sagemaker.build(request, command))
    names = {each["TrainingJobName"] for each in account.list_training_jobs()["TrainingJobSummaries"]}
    assert names == {f"{command.run_id}-worker-1", f"{command.run_id}-worker-2"}


def test_dry_run_has_placeholders() -> None:
    command = checked(("parta",), _line)
    request = completed(SubmitOptions(dry_run=True), command, submit_sagemaker.NEEDS)
    [document] = submit_sagemaker.build(request, command)
    assert document["RoleArn"] == "<ROLE>"
    assert document["OutputDataConfig"]["S3OutputPath"] == "s3://<BUCKET>/runs"


@given(st.integers(0, 99))
def test_next_name_is_unique(number: int) -> None:
    taken: list[str] = []
    for _ in range(number):
        taken.append(submit_sagemaker.next_name("birds", taken))
    assert len(set(taken)) == number
    assert submit_sagemaker.next_name("birds", ["birds-2", "birdsong", "my-birds"]) == "birds"


@pytest.mark.parametrize(
    ("status", "reason", "code", "expected"),
    [
        ("Completed", "", 0, ""),
        ("InProgress", "", None, ""),
        ("Stopping", "", None, ""),
        ("Stopped", "", 143, "stopped"),
        ("Failed", "AlgorithmError: --epochs is 'many': it must be a whole number., exit code: 2", 2, "--epochs"),
        ("Failed", "AlgorithmError: the tool said exit code: 3, and so on., exit code: 65", 65, "the tool"),
        ("Failed", "AlgorithmError: Exit Code: 1", 1, ""),
        ("Failed", "AlgorithmError: , exit code: 137", 75, ""),
        ("Failed", "AlgorithmError: , exit code: 143", 143, ""),
        ("Failed", "CapacityError: Unable to provision requested ML compute capacity.", 75, "--instance-type"),
        ("Failed", "InternalServerError: We encountered an internal error.", 75, "again"),
        ("Failed", "ClientError: Data download failed: AccessDenied (403)", 77, "--role"),
        ("Failed", "ClientError: Data download failed: NoSuchKey (404)", 65, "address"),
        ("Failed", "ClientError: Please use an instance type with more memory.", 78, "larger"),
        ("Failed", "ClientError: No such image", 78, "image"),
        ("Failed", "", 1, "no reason"),
    ],
)
def test_exit_code_of_training_job(status: str, reason: str, code: int | None, expected: str) -> None:
    found, message = exit_code_of({"TrainingJobStatus": status, "FailureReason": reason})
    assert found == code
    assert expected in message


@pytest.mark.parametrize("secondary", ["MaxRuntimeExceeded", "MaxWaitTimeExceeded"])
def test_exit_code_after_a_time_limit(secondary: str) -> None:
    code, message = exit_code_of({"TrainingJobStatus": "Stopped", "SecondaryStatus": secondary})
    assert code == 143
    assert "resumes from the checkpoint" in message


@pytest.fixture
def account(aws_keys: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    with mock_aws():
        yield boto3.client("sagemaker", "eu-west-1")


def test_submit_again_creates_another_attempt(account: Any) -> None:
    document = built()
    base = document["TrainingJobName"]
    for _ in range(2):
        job = submit_sagemaker.submit(SubmitOptions(**OPTIONS), [document])
        assert job.read_state().code == 0  # moto completes jobs at once
    names = {each["TrainingJobName"] for each in account.list_training_jobs()["TrainingJobSummaries"]}
    assert names == {base, f"{base}-attempt-2"}
    again = account.describe_training_job(TrainingJobName=f"{base}-attempt-2")
    assert again["HyperParameters"]["run-id"] == base


def test_submit_returns_the_running_job(capsys: pytest.CaptureFixture[str]) -> None:
    operations: list[str] = []
    changed: dict[str, str] = {}

    def sagemaker(operation: str, **parameters: Any) -> dict[str, Any]:
        operations.append(operation)
        if operation == "describe_training_job":
            return {"HyperParameters": {**built(name="birds")["HyperParameters"], **changed}}
        second = {"TrainingJobName": "birds-attempt-2", "TrainingJobStatus": "InProgress"}
        first = {"TrainingJobName": "birds", "TrainingJobStatus": "Stopped"}
        token = parameters.get("NextToken")
        return {"TrainingJobSummaries": [second]} if token else {"TrainingJobSummaries": [first], "NextToken": "t"}

    assert submit_sagemaker._attempts(sagemaker, "birds") == {"birds": "Stopped", "birds-attempt-2": "InProgress"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inat_job.platforms.aws.client.service", lambda name, region: sagemaker)
        job = submit_sagemaker.submit(SubmitOptions(**OPTIONS), [built(name="birds")])
        changed["lr"] = "0.5"
        with pytest.raises(ConflictError, match="with other settings"):
            submit_sagemaker.submit(SubmitOptions(**OPTIONS), [built(name="birds")])
    assert job.name == "training job birds-attempt-2"
    assert "create_training_job" not in operations
    assert "already works on this run" in capsys.readouterr().out
