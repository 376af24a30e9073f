"""The door to AWS: requests are checked without it, its errors are ours, and logs come as they are written."""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
    ProfileNotFound,
)
from moto import mock_aws

from entrypoint import _line
from inat_job.commands.submit import checked
from inat_job.errors import ConflictError, JobError, NoPermissionError, TransientError, UsageError
from inat_job.platforms.aws import client, request_models
from inat_job.platforms.batch import submit_batch
from inat_job.platforms.sagemaker import submit_sagemaker
from inat_job.platforms.submission import SubmitOptions, completed

ROOT = Path(__file__).parents[3]


def answered(code: str, status: int = 400, message: str = "It says why.") -> ClientError:
    meta = {"HTTPStatusCode": status, "HTTPHeaders": {}}
    return ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": meta}, "SubmitJob")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (answered("AccessDeniedException", 403), NoPermissionError),
        (answered("UnrecognizedClientException", 403), NoPermissionError),
        (answered("ExpiredTokenException", 403), NoPermissionError),
        (answered("InvalidSignatureException", 403), NoPermissionError),
        (answered("ThrottlingException"), TransientError),
        (answered("TooManyRequestsException", 429), TransientError),
        (answered("ServerException", 500), TransientError),
        (answered("ValidationException"), UsageError),
        (answered("ClientException"), ConflictError),
        (answered("ResourceLimitExceeded"), ConflictError),
        (answered("ResourceInUse"), ConflictError),
        (NoCredentialsError(), NoPermissionError),
        (NoRegionError(), ConflictError),
        (EndpointConnectionError(endpoint_url="http://x"), TransientError),
        (ProfileNotFound(profile="p"), UsageError),
        (ValueError("Invalid endpoint: x"), UsageError),
    ],
)
def test_an_error_of_theirs_is_one_of_ours(error: Exception, kind: type[JobError]) -> None:
    ours = client.translate(error, "batch:SubmitJob")
    assert isinstance(ours, kind)
    assert ours.exit_code == kind.exit_code


def test_what_aws_says_of_the_request_is_told_in_one_line() -> None:
    told = str(client.translate(answered("ClientException", message="no\nqueue"), "batch:SubmitJob"))
    assert "batch:SubmitJob (ClientException)" in told
    assert told.endswith("AWS says: no queue")


JOB = {"jobName": "n", "jobQueue": "q", "jobDefinition": "d"}
DESCRIPTION: dict[str, Any] = {
    "TrainingJobName": "birds",
    "AlgorithmSpecification": {"TrainingInputMode": "File"},
    "OutputDataConfig": {"S3OutputPath": "s3://b/p"},
    "RoleArn": "arn:aws:iam::123456789012:role/birds",
}


@pytest.mark.parametrize(
    ("service", "operation", "request_", "words"),
    [
        ("batch", "SubmitJob", {**JOB, "jobname": "n"}, "jobname"),
        ("batch", "SubmitJob", {"jobName": "n"}, "jobQueue"),
        ("batch", "SubmitJob", {**JOB, "jobName": 3}, "jobName"),
        ("batch", "RegisterJobDefinition", {"jobDefinitionName": "n", "type": "box"}, "none of its choices"),
        ("sagemaker", "CreateTrainingJob", {**DESCRIPTION, "TrainingJobName": "a_b"}, "does not fit"),
        ("sagemaker", "CreateTrainingJob", {**DESCRIPTION, "TrainingJobName": "a" * 64}, "at most 63"),
        ("sagemaker", "CreateTrainingJob", {**DESCRIPTION, "HyperParameters": {"a": "b" * 2501}}, "at most 2500"),
        ("sagemaker", "CreateTrainingJob", {**DESCRIPTION, "HyperParameters": {"k" * 257: "v"}}, "the key"),
        ("sagemaker", "CreateTrainingJob", {**DESCRIPTION, "Tags": [{"Key": "a!", "Value": "b"}]}, r"Tags\[0\].Key"),
        ("sagemaker", "CreateTrainingJob", {**DESCRIPTION, "RetryStrategy": {"MaximumRetryAttempts": 31}}, "most 30"),
    ],
)
def test_a_request_that_aws_would_refuse_is_refused_here(
    service: str, operation: str, request_: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        request_models.check(service, operation, request_)


def test_a_good_request_and_a_placeholder_pass() -> None:
    request_models.check("batch", "SubmitJob", JOB)
    tags = [{"Key": "schlüssel", "Value": "a b"}]
    request_models.check("sagemaker", "CreateTrainingJob", {**DESCRIPTION, "RoleArn": "<ROLE>", "Tags": tags})


@pytest.fixture
def logs(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    with mock_aws():
        yield boto3.client("logs", "eu-west-1")


def test_each_line_of_a_log_comes_once(logs: Any) -> None:
    log = client.LogTail(client.service("logs", "eu-west-1"), "/group")
    assert log.newest("job/") is None  # there is no group yet
    assert log.new("job/1") == []
    logs.create_log_group(logGroupName="/group")
    assert log.new("job/1") == []
    written: list[str] = []

    def write(stream: str, *lines: str) -> None:
        now = int(time.time() * 1000) + len(written)
        events = [{"timestamp": now, "message": line} for line in lines]
        logs.put_log_events(logGroupName="/group", logStreamName=stream, logEvents=events)
        written.extend(lines)

    logs.create_log_stream(logGroupName="/group", logStreamName="job/1")
    assert log.newest("job/") == "job/1"
    write("job/1", "a", "b\n")
    assert log.new("job/1") == ["a", "b"]
    assert log.new("job/1") == []
    write("job/1", "c")
    assert log.new("job/1") == ["c"]
    logs.create_log_stream(logGroupName="/group", logStreamName="job/2")
    write("job/2", "d")
    assert log.new("job/2") == ["d"]
    assert log.new(None) == []


def test_a_log_that_may_not_be_read_is_told_once_and_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[str] = []

    def denied(operation: str, **parameters: Any) -> dict[str, Any]:
        asked.append(operation)
        raise client.translate(answered("AccessDeniedException", 403), "logs:GetLogEvents")

    log = client.LogTail(denied, "/group")
    assert log.new("s") == log.new("s") == []
    assert asked == ["get_log_events"]
    assert "No permission for logs:GetLogEvents" in capsys.readouterr().out


def test_a_server_that_is_away_is_trouble_that_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    with pytest.raises(TransientError, match="batch:DescribeJobs"):
        client.service("batch", "eu-west-1")("describe_jobs", jobs=["j"])


def test_the_policy_for_who_submits_covers_each_call(logs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: set[str] = set()
    service = client.service

    def recorded(name: str, region: str | None) -> client.Call:
        call = service(name, "eu-west-1")

        def asked(operation: str, **parameters: Any) -> dict[str, Any]:
            calls.add(f"{name}:{operation.title().replace('_', '')}")
            # moto's has no queue, which would end it here
            return {"jobSummaryList": []} if operation == "list_jobs" else call(operation, **parameters)

        return asked

    monkeypatch.setattr(client, "service", recorded)
    command = checked(("parta", "--output", "s3://b/runs"), _line)
    for target, queue in ((submit_batch, "gpus"), (submit_sagemaker, None)):
        asked_for = SubmitOptions(image="i:1", role=DESCRIPTION["RoleArn"], queue=queue)
        request = completed(asked_for, command, target.NEEDS)
        with contextlib.suppress(JobError):  # this Batch has no queue
            target.submit(request, target.build(request, command)).look()
    log = client.LogTail(recorded("logs", None), "/group")
    log.newest("job/")
    log.new("job/1")
    calls.add("batch:DescribeJobs")
    policy = json.loads((ROOT / "docs/submit-policy.json").read_text())
    actions = [each["Action"] for each in policy["Statement"]]
    allowed = {action for each in actions for action in ([each] if isinstance(each, str) else each)}
    assert {"batch:SubmitJob", "sagemaker:CreateTrainingJob", "logs:GetLogEvents"} <= calls <= allowed
    assert allowed - calls == {"batch:TagResource", "sagemaker:AddTags", "iam:PassRole"}  # of what the calls imply


@pytest.mark.parametrize("target", [submit_batch, submit_sagemaker])
def test_no_secret_of_this_machine_is_sent(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "INAT_WANDB_PROJECT")
    for name in names:
        monkeypatch.setenv(name, f"planted-{name}")
    command = checked(("parta", "--output", "s3://b/runs"), _line)
    request = completed(SubmitOptions(dry_run=True, region="eu-west-1"), command, target.NEEDS)
    assert "planted" not in target.as_text(target.build(request, command))
    with pytest.raises(UsageError, match="AWS_SECRET_ACCESS_KEY"):
        checked(("parta", "--output", "s3://b/planted-AWS_SECRET_ACCESS_KEY"), _line)
