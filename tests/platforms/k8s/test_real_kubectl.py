"""submit_k8s.py and kubectl.py with the real kubectl, which talks to an API server on the loopback interface."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.harness.api_server import Cluster, api_server

ROOT = Path(__file__).parents[3]
ROLE = "arn:aws:iam::123456789012:role/inat-job"
OPTIONS = ("k8s", "--image", "registry/inat-job:1", "--role", ROLE, "--name", "mine")
RUN = ("--", "parta", "--epochs", "3", "--output", "s3://bucket/runs")
BATCH, CORE = "apis/batch/v1/namespaces/ml", "api/v1/namespaces/ml"

pytestmark = pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
Submit = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    with api_server() as cluster:
        yield cluster


@pytest.fixture
def submit(cluster: Cluster, tmp_path: Path) -> Submit:
    server = {"name": "c", "cluster": {"server": cluster.url}}
    context = {"name": "c", "context": {"cluster": "c", "user": "", "namespace": "other"}}
    head = {"kind": "Config", "apiVersion": "v1", "current-context": "c"}
    (tmp_path / "config").write_text(json.dumps({**head, "clusters": [server], "contexts": [context]}))
    environment = {**os.environ, "KUBECONFIG": str(tmp_path / "config"), "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    script = (
        "import sys\nfrom inat_job.commands import submit\nsubmit.EVERY_S = 0.01\nimport entrypoint\nentrypoint.main()"
    )

    def run(*words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-c", script, "submit", *OPTIONS, "--namespace", "ml", *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)

    return run


def pod(state: dict[str, Any], phase: str) -> dict[str, Any]:
    metadata = {"name": "mine-abcde", "namespace": "ml", "creationTimestamp": "2026-11-24T10:00:00Z"}
    return {"metadata": metadata, "status": {"phase": phase, "containerStatuses": [{"name": "job", "state": state}]}}


def condition(kind: str, **more: str) -> dict[str, Any]:
    return {"conditions": [{"type": kind, "status": "True", **more}]}


def test_submit_and_wait(submit: Submit, cluster: Cluster) -> None:
    lines = [("2026-11-24T10:00:01.5Z", "one"), ("2026-11-24T10:00:01.6Z", "two"), ("2026-11-24T10:00:03Z", "three")]
    running = pod({"running": {"startedAt": "2026-11-24T10:00:00Z"}}, "Running")
    done = pod({"terminated": {"exitCode": 0, "finishedAt": "2026-11-24T10:00:04Z"}}, "Succeeded")
    cluster.looks = [
        {},
        {"status": {"active": 1}, "pods": [running], "logs": {"mine-abcde": lines[:1]}},
        {"status": {"active": 1}, "pods": [running], "logs": {"mine-abcde": lines[:2]}},
        {"status": condition("Complete"), "pods": [done], "logs": {"mine-abcde": lines}},
    ]
    result = submit("--nodes", "2", "--wait", *RUN)
    assert result.returncode == 0, result.stderr
    out = result.stdout.splitlines()
    assert [line for line in out if not line.startswith("{")] == ["one", "two", "three"]
    assert [json.loads(line)["state"] for line in out if '"state"' in line] == ["Pending", "Running", "Complete"]
    assert {f"{CORE}/serviceaccounts/inat-job", f"{CORE}/services/mine", f"{BATCH}/jobs/mine"} < set(cluster.objects)
    [container] = cluster.objects[f"{BATCH}/jobs/mine"]["spec"]["template"]["spec"]["containers"]
    assert container["args"] == list(RUN[1:])
    assert all("fieldValidation=Strict" in each for each in cluster.seen if each.startswith("POST"))


def test_patched_job_is_accepted(submit: Submit, cluster: Cluster) -> None:
    result = submit("--patch", str(ROOT / "k8s/clusters/aks.yaml"), *RUN)
    assert result.returncode == 0, result.stderr
    job = cluster.objects[f"{BATCH}/jobs/mine"]
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert job["spec"]["template"]["spec"]["tolerations"][0]["key"] == "sku"
    assert [each["name"] for each in container["volumeMounts"]] == ["scratch", "shm", "aws-token"]


def test_failure_ends_with_the_containers_exit_code(submit: Submit, cluster: Cluster) -> None:
    message = json.dumps({"code": 65, "reason": "x.zip does not exist: check --data."})
    end = {"exitCode": 65, "finishedAt": "2026-11-24T10:00:04Z", "message": message}
    status = condition("Failed", reason="PodFailurePolicy", message="matching FailJob rule at index 1")
    cluster.looks = [{"status": status, "pods": [pod({"terminated": end}, "Failed")], "logs": {"mine-abcde": []}}]
    result = submit("--wait", *RUN)
    assert (result.returncode, "x.zip does not exist" in result.stderr.splitlines()[-1]) == (65, True), result.stderr


@pytest.mark.soak
def test_existing_and_forbidden(submit: Submit, cluster: Cluster) -> None:
    assert submit(*RUN).returncode == 0
    again = submit(*RUN)
    assert (again.returncode, "already works on this run" in again.stdout) == (0, True), again.stderr
    other = submit("--retries", "1", *RUN)
    assert (other.returncode, "with other options" in other.stderr.splitlines()[-1]) == (78, True), other.stderr
    cluster.objects[f"{BATCH}/jobs/mine"]["status"] = condition("Failed", reason="BackoffLimitExceeded")
    replaced = submit("--retries", "1", *RUN)
    assert (replaced.returncode, "(Failed) is replaced" in replaced.stdout) == (0, True), replaced.stderr
    new = cluster.objects[f"{BATCH}/jobs/mine"]
    assert ("status" in new, new["spec"]["backoffLimit"]) == (False, 1)
    cluster.forbidden = True
    cluster.objects.clear()
    refused = submit(*RUN)
    assert (refused.returncode, "is forbidden" in refused.stderr.splitlines()[-1]) == (77, True), refused.stderr


@pytest.mark.soak
def test_wait_ends_when_the_job_is_deleted(submit: Submit, cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "advance", lambda path: cluster.objects.pop(path, None))
    result = submit("--wait", *RUN)
    assert (result.returncode, "the Job was deleted" in result.stderr.splitlines()[-1]) == (75, True), result.stderr


@pytest.mark.soak
def test_jobset_is_accepted_and_followed(submit: Submit, cluster: Cluster) -> None:
    done = pod({"terminated": {"exitCode": 0, "finishedAt": "2026-11-24T10:00:04Z"}}, "Succeeded")
    logs = {"mine-abcde": [("2026-11-24T10:00:01Z", "one")]}
    cluster.looks = [{}, {"status": condition("Completed"), "pods": [done], "logs": logs}]
    result = submit("--nodes", "2", "--jobset", "--wait", *RUN)
    assert (result.returncode, "one" in result.stdout.splitlines()) == (0, True), result.stderr
    jobset = cluster.objects["apis/jobset.x-k8s.io/v1alpha2/namespaces/ml/jobsets/mine"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 6
    assert f"{CORE}/services/mine" not in cluster.objects


@pytest.mark.soak
def test_cluster_without_jobset(submit: Submit, cluster: Cluster) -> None:
    cluster.has_jobset = False
    result = submit("--nodes", "2", "--jobset", *RUN)
    last = result.stderr.splitlines()[-1]
    assert (result.returncode, "install JobSet in the cluster, or leave out --jobset" in last) == (78, True), last


@pytest.mark.soak
def test_texts_like_numbers_or_booleans_stay_texts(submit: Submit, cluster: Cluster) -> None:
    """YAML as kubectl reads it has more of both than PyYAML."""
    odd = "1e-3 1E5 1.5e3 .5e1 +1e3 0o17 1_000 0x1F 12:30 2026-01-01 y N on null ~ 0b1 .inf -.5".split()
    variables = [word for number, text in enumerate(odd) for word in ("--env", f"A{number}={text}")]
    result = submit(*variables, *RUN, "--lr", "1e-3")
    assert result.returncode == 0, result.stderr
    [container] = cluster.objects[f"{BATCH}/jobs/mine"]["spec"]["template"]["spec"]["containers"]
    assert container["args"][-1] == "1e-3"
    assert [
        each["value"] for each in container["env"] if each["name"].startswith("A") and each["name"][1:].isdigit()
    ] == odd
