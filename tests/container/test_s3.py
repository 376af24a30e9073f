"""A run of the image with its output in S3, as a hardened cluster does: its time, and that secrets are not stored."""

import os
import time
from typing import Any

import pytest

from .conftest import HARDENED, MARK, SECRETS, Job, Table

pytestmark = pytest.mark.container

LOGIN = f"user:{MARK}Password"
RUNS = 3


def _stored(bucket: str) -> dict[str, bytes]:
    import boto3
    from botocore.config import Config

    client: Any = boto3.session.Session().client("s3", config=Config(s3={"addressing_style": "path"}))
    listed = client.list_objects_v2(Bucket=bucket).get("Contents", [])
    return {each["Key"]: client.get_object(Bucket=bucket, Key=each["Key"])["Body"].read() for each in listed}


def _variables() -> dict[str, str]:
    endpoint = os.environ["AWS_ENDPOINT_URL"].replace("://", f"://{LOGIN}@")
    known = {name: os.environ[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_DEFAULT_REGION")}
    return {**known, **SECRETS, "AWS_ENDPOINT_URL": endpoint, "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.mark.parametrize("number", range(RUNS))
def test_run_stores_no_secret(image: str, name: str, s3_bucket: str, table: Table, number: int) -> None:
    variables = [word for pair in _variables().items() for word in ("-e", "=".join(pair))]
    command = ("parta", "--data", "demo:", "--image-size", "64", "--epochs", "1", "--wandb", "offline")
    begun = time.monotonic()
    job = Job(
        image,
        name,
        ("--rm", *HARDENED, "--user", "10001", "--network", "host", *variables),
        (*command, "--output", f"s3://{s3_bucket}/runs"),
    )
    job.until(lambda: "train" in job.phases)
    to_train = time.monotonic() - begun
    assert job.wait() == 0, job.errors
    total = time.monotonic() - begun
    stored = _stored(s3_bucket)
    assert any(key.endswith("/report.json") for key in stored)
    assert any(key.endswith(".wandb") for key in stored)
    everything = {**stored, "events": str(job.events).encode(), "errors": "".join(job.errors).encode()}
    assert [key for key, content in everything.items() if MARK.encode() in content] == []
    table.append((f"run {number + 1}", f"{to_train:.1f} s to the first step", f"{total:.1f} s in all", "", "", "", ""))
