"""The pods of each Job in k8s/, run by podman with the run on S3: to their end, and stopped.

The tests add what a cluster would: the kubelet's variables, the Job's labels, and keys instead of a role's token; the
network is this machine's. GPUs and instance types are removed, since podman knows neither. With INAT_TEST_CODE=1, the
code of this checkout replaces that of an older image.
"""

import copy
import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ENGINE, ROOT, engine

pytestmark = pytest.mark.container

SMALL = ("--data", "demo:", "--image-size", "64", "--wandb", "offline", "--batch-size", "32")
ARGUMENTS = {
    "parta": (*SMALL, "--filters", "8"),
    "partb": (*SMALL, "--backbone", "mobilenet_v3_small", "--weights", "none"),
    "nodes": (*SMALL, "--backbone", "mobilenet_v3_small", "--weights", "none"),
}
Play = Callable[..., str]


def pod_of(name: str, image: str, bucket: str, *more: str, index: int = 0) -> dict[str, Any]:
    """A pod as the Job's controller would create it, with the changes for a machine without a cluster."""
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("needs kubectl, which renders without a cluster")
    done = subprocess.run([kubectl, "kustomize", str(ROOT / "k8s" / name)], capture_output=True, text=True, check=True)
    [job] = [each for each in yaml.safe_load_all(done.stdout) if each["kind"] == "Job"]
    template = copy.deepcopy(job["spec"]["template"])
    template["metadata"]["labels"]["batch.kubernetes.io/job-name"] = job["metadata"]["name"]
    spec = template["spec"]
    [container] = spec["containers"]
    container["image"] = image
    container["args"] += [*ARGUMENTS[name], *more]
    del container["resources"]["limits"]["nvidia.com/gpu"], spec["nodeSelector"]
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION")
    changed = {each: os.environ[each] for each in names}
    changed |= {"INAT_OUTPUT": f"s3://{bucket}/runs", "KUBERNETES_SERVICE_HOST": "10.0.0.1", "OMP_NUM_THREADS": "1"}
    if name == "nodes":  # the controller sets the index, and the cluster's DNS has the pods' names
        changed |= {"JOB_COMPLETION_INDEX": str(index), "MASTER_ADDR": "127.0.0.1"}
    container["env"] = [each for each in container["env"] if each["name"] not in changed]
    container["env"] += [{"name": each, "value": value} for each, value in changed.items()]
    if os.environ.get("INAT_TEST_CODE"):
        _mount_code(spec, container)
    unique = f"inat-{name}-{uuid.uuid4().hex[:6]}"
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], "name": unique}, "spec": spec}


def _mount_code(spec: dict[str, Any], container: dict[str, Any]) -> None:
    for number, each in enumerate(("entrypoint.py", "inat_job")):
        spec["volumes"].append({"name": f"code{number}", "hostPath": {"path": str(ROOT / each)}})
        container["volumeMounts"].append({"name": f"code{number}", "mountPath": f"/app/{each}", "readOnly": True})


@pytest.fixture
def play(tmp_path: Path) -> Iterator[Play]:
    """Starts a pod and returns its container's name; the pod is removed afterwards."""
    if not ENGINE or "podman" not in ENGINE:
        pytest.skip("needs podman")
    files = []

    def start(pod: dict[str, Any]) -> str:
        file = tmp_path / f"{pod['metadata']['name']}.yaml"
        file.write_text(yaml.safe_dump(pod))
        files.append(file)
        done = engine("play", "kube", "--network", "host", str(file))
        assert done.returncode == 0, done.stderr
        return f"{pod['metadata']['name']}-job"

    yield start
    for file in files:
        engine("play", "kube", "--down", str(file))


def stored(bucket: str, run: str, name: str) -> Any:
    """A JSON file of the run, or None."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import ClientError

    client = boto3.session.Session().client("s3", config=Config(s3={"addressing_style": "path"}))
    try:
        return json.loads(client.get_object(Bucket=bucket, Key=f"runs/{run}/{name}")["Body"].read())
    except ClientError:
        return None


def logs_of(container: str) -> str:
    done = engine("logs", container)
    return done.stdout + done.stderr


def code_of(container: str) -> int:
    return int(engine("wait", container).stdout)


def start_pods(play: Play, name: str, image: str, bucket: str, *more: str) -> list[str]:
    """Start the pods of a Job, and return their containers, rank 0's first."""
    return [play(pod_of(name, image, bucket, *more, index=index)) for index in range(2 if name == "nodes" else 1)]


@pytest.mark.parametrize("name", ["parta", "partb", "nodes"])
def test_pods_run_to_their_end(name: str, play: Play, image: str, s3_bucket: str) -> None:
    containers = start_pods(play, name, image, s3_bucket, "--epochs", "1")
    for each in containers:
        assert code_of(each) == 0, logs_of(each)
    report = stored(s3_bucket, f"inat-{name}", "report.json")
    assert (report["status"], report["test"]["n"]) == ("done", 100)
    assert report["settings"]["run"]["grace_seconds"] == 120
    assert json.loads(logs_of(containers[0]).splitlines()[0])["event"]
    for each in containers:
        [inspected] = json.loads(engine("inspect", each).stdout)
        assert (inspected["Config"]["User"], inspected["HostConfig"]["ReadonlyRootfs"]) == ("10001:10001", True)


@pytest.mark.parametrize("name", ["parta", "partb", "nodes"])
def test_stopped_pods_store_a_checkpoint_and_the_next_resume(name: str, play: Play, image: str, s3_bucket: str) -> None:
    first = start_pods(play, name, image, s3_bucket, "--epochs", "8")
    deadline = time.monotonic() + 240
    while stored(s3_bucket, f"inat-{name}", "checkpoints/latest.json") is None:
        assert time.monotonic() < deadline, logs_of(first[0])
        time.sleep(0.2)
    begun = time.monotonic()
    engine("stop", "-t", "120", *first)
    for each in first:
        assert code_of(each) == 143, logs_of(each)
    assert time.monotonic() - begun < 60
    step = stored(s3_bucket, f"inat-{name}", "checkpoints/latest.json")["step"]
    assert stored(s3_bucket, f"inat-{name}", "report.json") is None
    for each in start_pods(play, name, image, s3_bucket, "--epochs", "8"):
        assert code_of(each) == 0, logs_of(each)
    history = stored(s3_bucket, f"inat-{name}", "report.json")["history"]
    assert history[0]["ended_step"] == step
