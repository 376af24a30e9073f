"""The pod of each Job in k8s/, run for real by podman: to its end, and stopped, with the run on S3.

What a cluster brings is put in its place: the kubelet's variables and the Job's labels, keys instead of a role's token,
and this machine's network. GPUs are left out, and the machine's kind: podman knows neither. INAT_TEST_CODE=1 puts the
code of this checkout over that of an image which is older.
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
    """The Job's pod as its controller would make it, with what a machine without a cluster needs changed."""
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("needs kubectl, which renders without a cluster")
    made = subprocess.run([kubectl, "kustomize", str(ROOT / "k8s" / name)], capture_output=True, text=True, check=True)
    [job] = [each for each in yaml.safe_load_all(made.stdout) if each["kind"] == "Job"]
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
    if name == "nodes":  # the controller's number; and the machines' names come from the cluster's DNS
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
    """Starts a pod, and gives its container's name; in the end it is removed."""
    if not ENGINE or "podman" not in ENGINE:
        pytest.skip("needs podman")
    files = []

    def start(pod: dict[str, Any]) -> str:
        file = tmp_path / f"{pod['metadata']['name']}.yaml"
        file.write_text(yaml.safe_dump(pod))
        files.append(file)
        played = engine("play", "kube", "--network", "host", str(file))
        assert played.returncode == 0, played.stderr
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


def said(container: str) -> str:
    logs = engine("logs", container)
    return logs.stdout + logs.stderr


def code_of(container: str) -> int:
    return int(engine("wait", container).stdout)


def started(play: Play, name: str, image: str, bucket: str, *more: str) -> list[str]:
    """The containers of a Job, rank 0's first."""
    return [play(pod_of(name, image, bucket, *more, index=index)) for index in range(2 if name == "nodes" else 1)]


@pytest.mark.parametrize("name", ["parta", "partb", "nodes"])
def test_the_pods_of_a_job_run_to_their_end(name: str, play: Play, image: str, s3_bucket: str) -> None:
    containers = started(play, name, image, s3_bucket, "--epochs", "1")
    for each in containers:
        assert code_of(each) == 0, said(each)
    report = stored(s3_bucket, f"inat-{name}", "report.json")
    assert (report["status"], report["test"]["n"]) == ("done", 100)
    assert report["settings"]["run"]["grace_seconds"] == 120
    assert json.loads(said(containers[0]).splitlines()[0])["event"]
    for each in containers:
        [inspected] = json.loads(engine("inspect", each).stdout)
        assert (inspected["Config"]["User"], inspected["HostConfig"]["ReadonlyRootfs"]) == ("10001:10001", True)


@pytest.mark.parametrize("name", ["parta", "partb", "nodes"])
def test_the_pods_of_a_job_that_are_stopped_store_their_state_and_the_next_go_on(
    name: str, play: Play, image: str, s3_bucket: str
) -> None:
    first = started(play, name, image, s3_bucket, "--epochs", "8")
    deadline = time.monotonic() + 240
    while stored(s3_bucket, f"inat-{name}", "checkpoints/latest.json") is None:
        assert time.monotonic() < deadline, said(first[0])
        time.sleep(0.2)
    begun = time.monotonic()
    engine("stop", "-t", "120", *first)
    for each in first:
        assert code_of(each) == 143, said(each)
    assert time.monotonic() - begun < 60
    step = stored(s3_bucket, f"inat-{name}", "checkpoints/latest.json")["step"]
    assert stored(s3_bucket, f"inat-{name}", "report.json") is None
    for each in started(play, name, image, s3_bucket, "--epochs", "8"):
        assert code_of(each) == 0, said(each)
    history = stored(s3_bucket, f"inat-{name}", "report.json")["history"]
    assert history[0]["ended_step"] == step
