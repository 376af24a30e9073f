"""`submit batch --wait` to moto's Batch, which runs the image through podman's socket.

The containers get AWS's endpoint and keys from podman, as containers of Batch get theirs from the machine.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.harness.podman import podman_service
from tests.harness.stores import moto_server

from .conftest import ROOT, engine

pytestmark = pytest.mark.container

SMALL = ("--image-size", "32", "--filters", "4", "--batch-size", "32", "--wandb", "off")
ROLE = "arn:aws:iam::123456789012:role/job"
ACCESS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class Batch:
    """moto's Batch with a queue, and the variables for its clients."""

    image: str
    environment: dict[str, str]

    def client(self, service: str) -> Any:
        import boto3

        return boto3.session.Session(
            self.environment["AWS_ACCESS_KEY_ID"], self.environment["AWS_SECRET_ACCESS_KEY"], region_name="us-east-1"
        ).client(service, endpoint_url=self.environment["AWS_ENDPOINT_URL"])

    def submit(self, *words: str, name: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        arguments = ("--image", self.image, "--role", ROLE, "--queue", "queue", "--gpus", "0", "--name", name, *options)
        line = [sys.executable, str(ROOT / "entrypoint.py"), "submit", "batch", "--wait", *arguments, "--", *words]
        return subprocess.Popen(
            line, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/"
        )


@pytest.fixture(scope="module")
def batch(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Batch]:
    if not shutil.which("podman"):
        pytest.skip("needs podman, through whose socket moto's Batch runs the image")
    pytest.importorskip("docker", reason="needs docker's Python client, with which moto's Batch runs the image")
    socket = tmp_path_factory.mktemp("batch") / "podman.sock"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "INAT_"))}
    docker = {"DOCKER_HOST": f"unix://{socket}", "MOTO_DOCKER_NETWORK_MODE": "host"}
    with moto_server({**clean, **ACCESS, **docker}, "tests.container.moto_batch") as url:
        variables = {**ACCESS, "AWS_ENDPOINT_URL": url, "INAT_LOG_FORMAT": "json"}
        with podman_service(socket, {**variables, "OMP_NUM_THREADS": "1"}):
            batch = Batch(image, {**clean, **variables})
            _create_queue(batch)
            batch.client("s3").create_bucket(Bucket="runs")
            yield batch


def _create_queue(batch: Batch) -> None:
    role = batch.client("iam").create_role(RoleName="service", AssumeRolePolicyDocument="{}")["Role"]["Arn"]
    client = batch.client("batch")
    environment = client.create_compute_environment(
        computeEnvironmentName="machines", type="UNMANAGED", state="ENABLED", serviceRole=role
    )["computeEnvironmentArn"]
    order = [{"order": 1, "computeEnvironment": environment}]
    client.create_job_queue(jobQueueName="queue", state="ENABLED", priority=1, computeEnvironmentOrder=order)


def events(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def test_job_trains_with_its_log_and_report(batch: Batch) -> None:
    words = ("parta", "--data", "demo:", "--epochs", "1", *SMALL, "--output", "s3://runs/good")
    child = batch.submit(*words, name="good")
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, (out, err)
    found = events(out)
    states = [event["state"] for event in found if event["event"] == "state"]
    assert states[-1] == "SUCCEEDED"
    assert [event for event in found if event["event"] == "epoch"]  # from the job's own log
    [key] = [
        each["Key"]
        for each in batch.client("s3").list_objects_v2(Bucket="runs", Prefix="good/")["Contents"]
        if each["Key"].endswith("report.json")
    ]
    assert key == "good/good/report.json"  # the run has the name of the job
    report = json.loads(batch.client("s3").get_object(Bucket="runs", Key=key)["Body"].read())
    assert report["status"] == "done"


def test_bad_data_ends_with_65(batch: Batch) -> None:
    child = batch.submit("prepare", "--data", "s3://runs/none.zip", name="bad")
    out, err = child.communicate(timeout=300)
    assert child.returncode == 65, (out, err)
    assert "s3://runs/none.zip does not exist" in out  # in the log
    assert "with code 65" in err.splitlines()[-1]


def test_stopped_job_ends_with_143_and_resumes(batch: Batch) -> None:
    words = ("parta", "--data", "demo:", "--epochs", "100", *SMALL, "--output", "s3://runs/long")
    child = batch.submit(*words, name="long")
    name = ""
    deadline = time.monotonic() + 180
    while not (name and '"epoch"' in engine("logs", name).stdout):
        assert child.poll() is None, child.communicate()
        assert time.monotonic() < deadline
        name = engine("ps", "--filter", "name=long-", "--format", "{{.Names}}").stdout.strip()
        time.sleep(0.2)
    engine("kill", "-s", "TERM", name)
    out, err = child.communicate(timeout=300)
    assert child.returncode == 143, (out, err)
    assert "is stored in s3://runs/long/long/checkpoints" in out
    again = batch.submit(*words, name="long")
    out, err = again.communicate(timeout=300)
    assert '"state": "resume"' in out, (out, err)
    assert again.returncode == 0, err
