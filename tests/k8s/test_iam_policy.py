"""k8s/iam-policy.json, compared with the calls of real runs: all are allowed, and nothing else is."""

import contextlib
import fnmatch
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.client import BaseClient
from botocore.exceptions import ClientError

import entrypoint
from inat_job.commands import train
from inat_job.configuration import configure
from inat_job.errors import NoPermissionError, Preempted
from inat_job.job_settings import TrackerSettings
from inat_job.reporting.tracker_check import check_tracking
from inat_job.signals import StopFlag, never
from inat_job.storage import StorageOptions, open_store
from inat_job.storage.s3 import multipart_upload
from tests.harness.job_runs import StopAfter
from tests.harness.made_images import tree, write_zip

POLICY = json.loads((Path(__file__).parents[2] / "k8s/iam-policy.json").read_text())
BUCKET = "my-bucket"
READ_SECRET = "GetSecretValue"
ACTIONS = {
    "HeadObject": "s3:GetObject",
    "GetObject": "s3:GetObject",
    "ListObjectsV2": "s3:ListBucket",
    "HeadBucket": "s3:ListBucket",
    "ListMultipartUploads": "s3:ListBucketMultipartUploads",
    "PutObject": "s3:PutObject",
    "CreateMultipartUpload": "s3:PutObject",
    "UploadPart": "s3:PutObject",
    "CompleteMultipartUpload": "s3:PutObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
    "DeleteObject": "s3:DeleteObject",
}
"""https://docs.aws.amazon.com/AmazonS3/latest/userguide/using-with-s3-policy-actions.html"""

SMALL = "--image-size 32 --filters 4 --dense 8 --batch-size 8 --wandb off --accelerator cpu --run-id r".split()

pytestmark = pytest.mark.filterwarnings("ignore")


@dataclass(frozen=True)
class Call:
    """An action on a resource, with the prefix for conditions; `probe` if the job also accepts a refusal."""

    action: str
    resource: str
    prefix: str | None = None
    probe: bool = False


def calls_of(operation: str, parameters: dict[str, Any], missing: bool) -> Iterator[Call]:
    """What S3 authorises for a request. To tell a missing key from a forbidden one takes permission to list it."""
    if operation == READ_SECRET:
        yield Call(f"secretsmanager:{operation}", parameters["SecretId"])
        return
    bucket, key = f"arn:aws:s3:::{parameters['Bucket']}", parameters.get("Key")
    resource = bucket if key is None else f"{bucket}/{key}"
    yield Call(ACTIONS[operation], resource, parameters.get("Prefix"), probe=operation == "HeadBucket")
    if missing and key is not None:
        yield Call("s3:ListBucket", bucket, key)


def allowed_by(call: Call, policy: dict[str, Any]) -> set[tuple[str, str]]:
    """The pairs of Sid and action that allow a call."""
    return {
        (statement["Sid"], action)
        for statement in policy["Statement"]
        for action in as_list(statement["Action"])
        if action == call.action
        and any(fnmatch.fnmatchcase(call.resource, pattern) for pattern in as_list(statement["Resource"]))
        and condition_holds(statement.get("Condition", {}), call)
    }


def condition_holds(condition: dict[str, Any], call: Call) -> bool:
    for operator, keys in condition.items():
        assert (operator, set(keys)) == ("StringLike", {"s3:prefix"})
        if call.prefix is None or not any(
            fnmatch.fnmatchcase(call.prefix, each) for each in as_list(keys["s3:prefix"])
        ):
            return False
    return True


def as_list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


@pytest.fixture
def calls(bucket: str, monkeypatch: pytest.MonkeyPatch) -> set[Call]:
    """The S3 calls for this bucket from here on: threads of other tests may still be at work in theirs."""
    seen: set[Call] = set()
    real = BaseClient._make_api_call

    def recorded(self: BaseClient, operation: str, parameters: dict[str, Any]) -> Any:
        missing = False
        try:
            return real(self, operation, parameters)
        except ClientError as error:
            missing = error.response["ResponseMetadata"]["HTTPStatusCode"] == 404
            raise
        finally:
            if parameters.get("Bucket") == bucket or operation == READ_SECRET:
                seen.update(calls_of(operation, parameters, missing))

    monkeypatch.setattr(BaseClient, "_make_api_call", recorded)
    return seen


@pytest.fixture
def bucket(s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A bucket with an archive and loose files, to which all but the smallest objects are uploaded in parts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(multipart_upload, "SINGLE_REQUEST_LIMIT", 20_000)
    files = tree(train=20, test=5)
    archive = write_zip(tmp_path / "x.zip", files)
    store = open_store(f"s3://{s3_bucket}/data", StorageOptions(), role="output")
    store.put("images.zip", archive)
    for name, content in files.items():
        store.put(f"loose/{name}", content)
    return s3_bucket


def command(*words: str) -> None:
    entrypoint.cli.main([*words], standalone_mode=False)


def life_of_a_run(bucket: str) -> None:
    """A run that is stopped, resumed, finished, found finished, tested and restarted; and a run on loose files."""
    output = f"s3://{bucket}/runs"
    data = ["--data", f"s3://{bucket}/data/images.zip"]
    flags = {"data.uri": data[1], "run.output": output, "run.run_id": "r", "data.image_size": 32, "model.filters": "4"}
    flags |= {
        "model.dense": 8,
        "train.batch_size": 8,
        "tracker.mode": "off",
        "train.epochs": 2,
        "train.accelerator": "cpu",
    }
    settings = configure("a", flags, (), None).settings
    with pytest.raises(Preempted):
        train.run(settings, StopAfter(60), time.perf_counter(), entrypoint.detect.NO_PLATFORM)
    train.run(settings, StopFlag(), time.perf_counter(), entrypoint.detect.NO_PLATFORM)
    again = ["parta", *data, "--output", output, *SMALL]
    command(*again, "--epochs", "2")
    command("test", "--checkpoint", f"{output}/r", "--output", output, "--wandb", "off", "--accelerator", "cpu")
    command(*again, "--epochs", "1", "--resume", "never", "--force")
    loose = ["--data", f"s3://{bucket}/data/loose", "--output", output, *SMALL[:-1], "loose", "--epochs", "1"]
    command("parta", *loose)


def refused_upload(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A multipart upload that S3 refuses half-way."""
    real = BaseClient._make_api_call

    def refused(self: BaseClient, operation: str, parameters: dict[str, Any]) -> Any:
        if operation == "UploadPart":
            answer = {"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}
            raise ClientError(answer, operation)
        return real(self, operation, parameters)

    with monkeypatch.context() as patch:
        patch.setattr(BaseClient, "_make_api_call", refused)
        with contextlib.suppress(NoPermissionError):
            open_store(f"s3://{bucket}/runs", StorageOptions(), role="output").put("x", bytes(50_000))


def tracked_online(monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that reads the key of the tracker."""
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.setenv("WANDB_API_KEY", "")
    client = boto3.session.Session().client("secretsmanager")
    made = client.create_secret(Name=f"wandb-{time.time_ns()}", SecretString="k")
    check_tracking(TrackerSettings(mode="online", key_name=made["ARN"]), never)


@pytest.mark.soak
def test_policy_allows_what_a_run_needs_and_no_more(
    bucket: str, calls: set[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    life_of_a_run(bucket)
    refused_upload(bucket, monkeypatch)
    tracked_online(monkeypatch)
    policy = json.loads(json.dumps(POLICY).replace(BUCKET, bucket))
    refused = {call for call in calls if not allowed_by(call, policy) and not call.probe}
    assert not refused
    used = {pair for call in calls for pair in allowed_by(call, policy)}
    granted = {(each["Sid"], action) for each in policy["Statement"] for action in as_list(each["Action"])}
    assert used == granted
    for pattern in policy["Statement"][-1]["Condition"]["StringLike"]["s3:prefix"]:
        assert any(call.prefix and fnmatch.fnmatchcase(call.prefix, pattern) for call in calls), pattern


def test_allowed_by_refuses_other_calls() -> None:
    arn = f"arn:aws:s3:::{BUCKET}"
    for call in (
        Call("s3:PutObject", f"{arn}/data/x"),
        Call("s3:GetObject", f"{arn}/other/x"),
        Call("s3:GetObject", "arn:aws:s3:::another/runs/x"),
        Call("s3:ListBucket", arn, "other/"),
        Call("s3:ListBucket", arn),
        Call("secretsmanager:GetSecretValue", "arn:aws:secretsmanager:eu-west-1:123456789012:secret:other-a1B2c3"),
    ):
        assert not allowed_by(call, POLICY)
    assert allowed_by(Call("s3:ListBucket", arn, "runs/r/"), POLICY) == {("TellMissingFromForbidden", "s3:ListBucket")}
