"""The stores that the harness gives to the job, a folder or a bucket, and the files of a run in them.

They are read with boto3 and pathlib, never with the job's own code, which would hide its own mistakes.
"""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

_SERVER_START_S = 60.0


@dataclass(frozen=True)
class Result:
    """The result of a finished run; two runs of the same command must agree in all of it."""

    best: int
    model: str
    test: Any
    val: Any
    metrics: str

    def differences(self, other: "Result") -> list[str]:
        """The differences from an undisturbed run's result; `best` is the step of the tested checkpoint."""
        names = [name for name in ("model", "test", "val", "metrics") if getattr(self, name) != getattr(other, name)]
        best = [f"the best step is {self.best}, not {other.best}"] if self.best != other.best else []
        return [*best, *(f"{name} differs from the undisturbed run" for name in names)]


class Output(Protocol):
    """A place for runs; `uri` is the value of `--output`."""

    uri: str

    def read(self, run: str, name: str) -> bytes | None:
        """A file of a run, or None if it does not exist."""
        ...

    def names(self, run: str) -> list[str]:
        """The names of a run's files."""
        ...

    def delete(self, run: str) -> None:
        """Delete a run."""
        ...


class LocalOutput:
    """Runs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.uri = str(folder)
        self._folder = folder

    def read(self, run: str, name: str) -> bytes | None:
        try:
            return (self._folder / run / name).read_bytes()
        except FileNotFoundError:
            return None

    def names(self, run: str) -> list[str]:
        files = [path for path in (self._folder / run).rglob("*") if path.is_file()]
        return sorted(path.relative_to(self._folder / run).as_posix() for path in files)

    def delete(self, run: str) -> None:
        shutil.rmtree(self._folder / run, ignore_errors=True)


class S3Output:
    """Runs in a new bucket of an S3 server, accessed directly even if the job goes through a proxy."""

    scheme = "s3"

    def __init__(self, endpoint: str) -> None:
        import boto3
        from botocore.config import Config

        config = Config(s3={"addressing_style": "path"}, retries={"mode": "standard", "total_max_attempts": 5})
        self.bucket = f"inat-harness-{uuid.uuid4().hex[:12]}"
        self._client = boto3.session.Session().client(
            "s3", endpoint_url=endpoint, config=config, **_credentials_for_boto3()
        )
        self._client.create_bucket(Bucket=self.bucket)
        self.uri = f"{self.scheme}://{self.bucket}/runs"

    def put(self, key: str, path: Path) -> str:
        """Store a file beside the runs, which anyone may read; returns its URI."""
        self._client.put_object(Bucket=self.bucket, Key=key, Body=path.read_bytes(), ACL="public-read")
        return f"{self.scheme}://{self.bucket}/{key}"

    def write(self, run: str, name: str, data: bytes) -> None:
        """Overwrite a file of a run, to damage it."""
        self._client.put_object(Bucket=self.bucket, Key=f"runs/{run}/{name}", Body=data)

    def read(self, run: str, name: str) -> bytes | None:
        try:
            return bytes(self._client.get_object(Bucket=self.bucket, Key=f"runs/{run}/{name}")["Body"].read())
        except self._client.exceptions.NoSuchKey:
            return None

    def names(self, run: str) -> list[str]:
        prefix = f"runs/{run}/"
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return [found["Key"][len(prefix) :] for page in pages for found in page.get("Contents", [])]

    def delete(self, run: str) -> None:
        for name in self.names(run):
            self._client.delete_object(Bucket=self.bucket, Key=f"runs/{run}/{name}")


@contextmanager
def s3_endpoint() -> Iterator[str]:
    """The address of the S3 server in INAT_TEST_S3_ENDPOINT, or of a moto server that is started for the block."""
    if named := os.environ.get("INAT_TEST_S3_ENDPOINT"):
        yield named
        return
    with moto_server() as url:
        yield url


@contextmanager
def moto_server(environment: Mapping[str, str] = os.environ, module: str = "tests.harness.moto_s3") -> Iterator[str]:
    """The address of a moto server in another process, where this process's interpreter lock does not slow the jobs."""
    with subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=Path(__file__).parents[2],
        env=dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()


def wait_until_open(port: int) -> None:
    until = time.monotonic() + _SERVER_START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def credentials() -> dict[str, str]:
    """AWS's environment variables for the S3 server: the real one's credentials, or any for moto."""
    known = os.environ if "INAT_TEST_S3_ENDPOINT" in os.environ else {}
    return {
        "AWS_ACCESS_KEY_ID": known.get("AWS_ACCESS_KEY_ID", "test"),
        "AWS_SECRET_ACCESS_KEY": known.get("AWS_SECRET_ACCESS_KEY", "test"),
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def result_of(output: Output, run: str) -> Result | None:
    """The result of a run, or None if it is not finished."""
    report = report_of(output, run)
    model = output.read(run, "model/model.safetensors")
    if report is None or model is None:
        return None
    metrics = (output.read(run, "metrics.jsonl") or b"").decode()
    best = int(report["checkpoint"]["step"])
    return Result(best, hashlib.sha256(model).hexdigest(), report["test"], report["val"], metrics)


def report_of(output: Output, run: str) -> dict[str, Any] | None:
    """The report of a finished run, or None."""
    data = output.read(run, "report.json")
    report = json.loads(data) if data else {}
    return report if report.get("status") == "done" else None


def latest_step(output: Output, run: str) -> int:
    """The step of a run's latest checkpoint, 0 if none is stored yet."""
    data = output.read(run, "checkpoints/latest.json")
    return int(json.loads(data)["step"]) if data else 0


def damaged_checkpoints(output: Output, run: str) -> list[str]:
    """The manifests in a run's folder whose checkpoint is missing or has other bytes."""
    names, wrong = output.names(run), []
    for name in names:
        if name.startswith("checkpoints/") and name.removeprefix("checkpoints/").removesuffix(".json").isdigit():
            manifest = json.loads(output.read(run, name) or b"{}")
            data = output.read(run, name.removesuffix(".json") + ".ckpt")
            if data is None:
                wrong.append(f"{name} has no checkpoint")
            elif hashlib.sha256(data).hexdigest() != manifest.get("sha256"):
                wrong.append(f"{name} does not have the hash of its checkpoint")
    return wrong


def _credentials_for_boto3() -> dict[str, str]:
    known = credentials()
    return {
        "aws_access_key_id": known["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": known["AWS_SECRET_ACCESS_KEY"],
        "region_name": known["AWS_DEFAULT_REGION"],
    }
