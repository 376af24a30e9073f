"""client.py: AWS errors become ours, and CloudWatch logs are followed."""

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
from inat_job.platforms.aws import client
from inat_job.platforms.batch import submit_batch
from inat_job.platforms.sagemaker import submit_sagemaker
from inat_job.platforms.submission import SubmitOptions, completed

ROOT = Path(__file__).parents[3]


def client_error(code: str, status: int = 400, message: str = "It says why.") -> ClientError:
    meta = {"HTTPStatusCode": status, "HTTPHeaders": {}}
    return ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": meta}, "SubmitJob")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (client_error("AccessDeniedException", 403), NoPermissionError),
        (client_error("UnrecognizedClientException", 403), NoPermissionError),
        (client_error("ExpiredTokenException", 403), NoPermissionError),
        (client_error("InvalidSignatureException", 403), NoPermissionError),
        (client_error("ThrottlingException"), TransientError),
        (client_error("TooManyRequestsException", 429), TransientError),
        (client_error("ServerException", 500), TransientError),
        (client_error("ValidationException"), UsageError),
        (client_error("ClientException"), ConflictError),
        (client_error("ResourceLimitExceeded"), ConflictError),
        (client_error("ResourceInUse"), ConflictError),
        (NoCredentialsError(), NoPermissionError),
        (NoRegionError(), ConflictError),
        (EndpointConnectionError(endpoint_url="http://x"), TransientError),
        (ProfileNotFound(profile="p"), UsageError),
        (ValueError("Invalid endpoint: x"), UsageError),
    ],
)
def test_translate_to_our_errors(error: Exception, kind: type[JobError]) -> None:
    translated = client.translate(error, "batch:SubmitJob")
    assert isinstance(translated, kind)
    assert translated.exit_code == kind.exit_code


def test_translate_keeps_aws_message_in_one_line() -> None:
    message = str(client.translate(client_error("ClientException", message="no\nqueue"), "batch:SubmitJob"))
    assert "batch:SubmitJob (ClientException)" in message
    assert message.endswith("AWS says: no queue")


ROLE = "arn:aws:iam::123456789012:role/birds"


@pytest.fixture
def logs(aws_keys: None) -> Any:
    with mock_aws():
        yield boto3.client("logs", "eu-west-1")


def test_log_tail_returns_each_line_once(logs: Any) -> None:
    log = client.LogTail(client.service("logs", "eu-west-1"), "/group")
    assert log.newest("job/") is None  # the group does not exist yet
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


def test_log_tail_without_permission_warns_once(capsys: pytest.CaptureFixture[str]) -> None:
    operations: list[str] = []

    def denied(operation: str, **parameters: Any) -> dict[str, Any]:
        operations.append(operation)
        raise client.translate(client_error("AccessDeniedException", 403), "logs:GetLogEvents")

    log = client.LogTail(denied, "/group")
    assert log.new("s") == log.new("s") == []
    assert operations == ["get_log_events"]
    assert "No permission for logs:GetLogEvents" in capsys.readouterr().out


def test_unreachable_server_is_transient(aws_keys: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.0)
    with pytest.raises(TransientError, match="batch:DescribeJobs"):
        client.service("batch", "eu-west-1")("describe_jobs", jobs=["j"])


@pytest.mark.soak
def test_submit_policy_covers_each_call(logs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: set[str] = set()
    service = client.service

    def recorded(name: str, region: str | None) -> client.Call:
        call = service(name, "eu-west-1")

        def record(operation: str, **parameters: Any) -> dict[str, Any]:
            calls.add(f"{name}:{operation.title().replace('_', '')}")
            # moto has no queue here, which would be an error
            return {"jobSummaryList": []} if operation == "list_jobs" else call(operation, **parameters)

        return record

    monkeypatch.setattr(client, "service", recorded)
    command = checked(("parta", "--output", "s3://b/runs"), _line)
    for target, queue in ((submit_batch, "gpus"), (submit_sagemaker, None)):
        options = SubmitOptions(image="i:1", role=ROLE, queue=queue)
        request = completed(options, command, target.NEEDS)
        with contextlib.suppress(JobError):  # because moto has no queue
            target.submit(request, target.build(request, command)).read_state()
    log = client.LogTail(recorded("logs", None), "/group")
    log.newest("job/")
    log.new("job/1")
    calls.add("batch:DescribeJobs")
    policy = json.loads((ROOT / "docs/submit-policy.json").read_text())
    actions = [each["Action"] for each in policy["Statement"]]
    allowed = {action for each in actions for action in ([each] if isinstance(each, str) else each)}
    assert {"batch:SubmitJob", "sagemaker:CreateTrainingJob", "logs:GetLogEvents"} <= calls <= allowed
    assert allowed - calls == {"batch:TagResource", "sagemaker:AddTags", "iam:PassRole"}  # implied by the calls


@pytest.mark.parametrize("target", [submit_batch, submit_sagemaker])
def test_local_secrets_are_not_sent(target: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY", "INAT_WANDB_PROJECT")
    for name in names:
        monkeypatch.setenv(name, f"planted-{name}")
    command = checked(("parta", "--output", "s3://b/runs"), _line)
    request = completed(SubmitOptions(dry_run=True, region="eu-west-1"), command, target.NEEDS)
    assert "planted" not in target.as_text(target.build(request, command))
    with pytest.raises(UsageError, match="AWS_SECRET_ACCESS_KEY"):
        checked(("parta", "--output", "s3://b/planted-AWS_SECRET_ACCESS_KEY"), _line)
