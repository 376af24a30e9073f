"""What is sent to SageMaker, what its ends mean, and that the job takes what the submission says."""

import re
from typing import Any

import boto3
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moto import mock_aws

from entrypoint import _line
from inat_job.commands.submit import checked
from inat_job.errors import ConflictError, UsageError
from inat_job.platforms.platform import Platform
from inat_job.platforms.sagemaker import submit_sagemaker
from inat_job.platforms.sagemaker.submit_sagemaker import ended
from inat_job.platforms.settings_layer import configured, part_of
from inat_job.platforms.submission import SubmitOptions, completed
from inat_job.telemetry import metric_lines

ROLE = "arn:aws:iam::123456789012:role/birds"
NO_PLATFORM: dict[str, Any] = {"image": "1.dkr.ecr.eu-west-1.amazonaws.com/birds:1", "role": ROLE}
WORDS = ("parta", "--output", "s3://bucket/runs", "--seed", "3")


def built(*words: str, **asked: Any) -> dict[str, Any]:
    command = checked(words or WORDS, _line)
    request = completed(SubmitOptions(**{**NO_PLATFORM, **asked}), command, submit_sagemaker.NEEDS)
    [document] = submit_sagemaker.build(request, command)
    return document


def test_the_request_holds_all_that_the_job_needs() -> None:
    made = built(nodes=2, instance_type="ml.p4d.24xlarge", disk=500, timeout=3600.0, tags=("team=birds",))
    name = made["TrainingJobName"]
    assert made["HyperParameters"] == {"part": "a", "seed": "3", "output": "s3://bucket/runs", "run-id": name}
    assert made["AlgorithmSpecification"]["TrainingInputMode"] == "File"
    assert made["RoleArn"] == ROLE
    assert made["OutputDataConfig"] == {"S3OutputPath": "s3://bucket/runs"}
    machines = {"InstanceType": "ml.p4d.24xlarge", "InstanceCount": 2, "VolumeSizeInGB": 500}
    assert made["ResourceConfig"] == machines
    assert made["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600}
    assert made["CheckpointConfig"] == {
        "S3Uri": f"s3://bucket/runs/{name}/opt-ml",
        "LocalPath": "/opt/ml/checkpoints",
    }
    assert made["Tags"] == [{"Key": "team", "Value": "birds"}]
    assert "Environment" not in made


def test_spot_waits_longer_than_it_runs() -> None:
    made = built(spot=True, timeout=3600.0)
    assert made["EnableManagedSpotTraining"] is True
    assert made["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}


def test_each_metric_is_read_by_its_regex_alone() -> None:
    definitions = {each["Name"]: each["Regex"] for each in built()["AlgorithmSpecification"]["MetricDefinitions"]}
    for name, regex in definitions.items():
        found = {other for other in metric_lines.NAMES if re.search(regex, metric_lines.line(other, 0.25))}
        assert found == {name}


GIVEN = st.fixed_dictionaries(
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
@given(GIVEN)
def test_the_job_understands_what_the_command_meant(options: dict[str, str | None]) -> None:
    words = [word for flag, value in options.items() for word in ([flag] if value is None else [flag, value])]
    said = built("parta", "--output", "s3://bucket/runs", *words, name="birds")["HyperParameters"]
    assert all(isinstance(value, str) for value in said.values())
    place = Platform("SageMaker", hyperparameters=said)
    there = configured(place, part_of(place), {}, [], None).settings
    here = checked(("parta", "--output", "s3://bucket/runs", "--run-id", "birds", *words), _line).configuration
    assert there == here.settings


def test_what_is_set_by_its_name_in_the_file_is_passed_on() -> None:
    assert built(*WORDS, "--set", "train.lr=0.5")["HyperParameters"]["lr"] == "0.5"
    assert built("partb", *WORDS[1:], "--strategy", "full")["HyperParameters"]["part"] == "b"


@pytest.mark.parametrize(
    ("asked", "words", "told"),
    [
        ({"gpus": 2}, WORDS, "--gpus"),
        ({"queue": "q"}, WORDS, "--queue"),
        ({"cpus": 2}, WORDS, "--cpus"),
        ({"wandb_secret": "arn"}, WORDS, "--wandb-secret"),
        ({"role": "birds"}, WORDS, "RoleArn"),
        ({"instance_type": "g5.xlarge"}, WORDS, "InstanceType"),
        ({"retries": 31}, WORDS, "MaximumRetryAttempts"),
        ({}, ("prepare", "--data", "demo:"), "use parta or partb"),
        ({}, ("parta",), "--output is not set"),
    ],
)
def test_what_sagemaker_would_refuse_or_ignore_is_told_before(
    asked: dict[str, Any], words: tuple[str, ...], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        built(*words, **asked)


def test_a_dry_run_shows_places_to_fill() -> None:
    command = checked(("parta",), _line)
    request = completed(SubmitOptions(dry_run=True), command, submit_sagemaker.NEEDS)
    [made] = submit_sagemaker.build(request, command)
    assert made["RoleArn"] == "<ROLE>"
    assert made["OutputDataConfig"]["S3OutputPath"] == "s3://<BUCKET>/runs"


@given(st.integers(0, 99))
def test_names_of_attempts_never_meet(number: int) -> None:
    taken: list[str] = []
    for _ in range(number):
        taken.append(submit_sagemaker.next_name("birds", taken))
    assert len(set(taken)) == number
    assert submit_sagemaker.next_name("birds", ["birds-2", "birdsong", "my-birds"]) == "birds"


@pytest.mark.parametrize(
    ("status", "reason", "code", "words"),
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
def test_an_end_is_one_of_our_codes(status: str, reason: str, code: int | None, words: str) -> None:
    found, said = ended({"TrainingJobStatus": status, "FailureReason": reason})
    assert found == code
    assert words in said


@pytest.mark.parametrize("secondary", ["MaxRuntimeExceeded", "MaxWaitTimeExceeded"])
def test_a_job_that_ran_out_of_time_is_preempted(secondary: str) -> None:
    code, said = ended({"TrainingJobStatus": "Stopped", "SecondaryStatus": secondary})
    assert code == 143
    assert "goes on from the checkpoint" in said


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.delenv("AWS_DEFAULT_REGION", raising=False)
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield boto3.client("sagemaker", "eu-west-1")


def test_a_submission_again_is_another_attempt_at_the_same_run(account: Any) -> None:
    made = built()
    base = made["TrainingJobName"]
    for _ in range(2):
        job = submit_sagemaker.submit(SubmitOptions(**NO_PLATFORM), [made])
        assert job.look().code == 0  # moto's jobs are completed at once
    names = {each["TrainingJobName"] for each in account.list_training_jobs()["TrainingJobSummaries"]}
    assert names == {base, f"{base}-attempt-2"}
    again = account.describe_training_job(TrainingJobName=f"{base}-attempt-2")
    assert again["HyperParameters"]["run-id"] == base


def test_a_job_that_still_works_is_taken_instead_of_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []
    other: dict[str, str] = {}

    def sagemaker(operation: str, **parameters: Any) -> dict[str, Any]:
        asked.append(operation)
        if operation == "describe_training_job":
            return {"HyperParameters": {**built(name="birds")["HyperParameters"], **other}}
        second = {"TrainingJobName": "birds-attempt-2", "TrainingJobStatus": "InProgress"}
        first = {"TrainingJobName": "birds", "TrainingJobStatus": "Stopped"}
        token = parameters.get("NextToken")
        return {"TrainingJobSummaries": [second]} if token else {"TrainingJobSummaries": [first], "NextToken": "t"}

    assert submit_sagemaker._attempts(sagemaker, "birds") == {"birds": "Stopped", "birds-attempt-2": "InProgress"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inat_job.platforms.aws.client.service", lambda name, region: sagemaker)
        job = submit_sagemaker.submit(SubmitOptions(**NO_PLATFORM), [built(name="birds")])
        other["lr"] = "0.5"
        with pytest.raises(ConflictError, match="with other settings"):
            submit_sagemaker.submit(SubmitOptions(**NO_PLATFORM), [built(name="birds")])
    assert job.name == "training job birds-attempt-2"
    assert "create_training_job" not in asked
    assert "is at this run already" in capsys.readouterr().out
