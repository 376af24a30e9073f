"""submit_k8s.py: what `submit k8s` shows and sends, with a fake kubectl."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from inat_job.errors import ConflictError
from inat_job.platforms.k8s import job_watch
from inat_job.platforms.k8s.submit_k8s import merge, read_manifest
from tests.harness.fake_kubectl import COMPLETE, RUNNING, exited, failed, play, pod
from tests.harness.in_process import Ended

ROOT = Path(__file__).parents[3]
ROLE = "arn:aws:iam::123456789012:role/inat-job"
OPTIONS = ("k8s", "--image", "registry/inat-job:1", "--role", ROLE)
RUN = ("--", "parta", "--epochs", "3", "--output", "s3://bucket/runs")


def test_dry_run_has_placeholders_and_needs_no_kubectl(
    submit: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    dry_run = submit("k8s", "--dry-run", "--", "parta", "--epochs", "3")
    assert dry_run.code == 0
    account, manifest = yaml.safe_load_all("\n".join(dry_run.lines))
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["args"]) == ("<IMAGE>", ["parta", "--epochs", "3"])
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": "<ROLE>"}
    assert {"name": "INAT_OUTPUT", "value": "s3://<BUCKET>/runs"} in container["env"]
    assert manifest["metadata"]["name"].startswith("parta-")
    assert submit("k8s", "--dry-run", "--", "parta", "--epochs", "3").lines == dry_run.lines


def test_dollars_in_arguments_are_escaped(submit: Callable[..., Ended]) -> None:
    dry_run = submit("k8s", "--dry-run", *RUN, "--wandb-project", "$(WANDB_API_KEY)$$x")
    manifest = list(yaml.safe_load_all("\n".join(dry_run.lines)))[-1]
    args = manifest["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[-1] == "$$(WANDB_API_KEY)$$$$x", "Kubernetes turns each $$ into one $"


def test_submit_sends_what_the_dry_run_shows(submit: Callable[..., Ended], cluster: Path) -> None:
    options = (*OPTIONS, "--nodes", "2", "--namespace", "ml", "--tags", "team=vision")
    manifests = list(yaml.safe_load_all("\n".join(submit(*options, "--dry-run", *RUN).lines)))
    assert not (cluster / "sent.yaml").exists()
    sent = submit(*options, *RUN)
    assert (sent.code, json.loads(sent.lines[-1])["event"]) == (0, "submitted")
    assert [each for each in yaml.safe_load_all((cluster / "sent.yaml").read_text()) if each] == manifests
    calls = [json.loads(line) for line in (cluster / "calls.jsonl").read_text().splitlines()]
    assert [call[:2] for call in calls] == [["--namespace", "ml"]] * 2
    assert [call[3] for call in calls] == ["apply", "create"]
    assert {each["metadata"]["namespace"] for each in manifests} == {"ml"}


def test_wait_follows_the_job_to_its_end(submit: Callable[..., Ended], cluster: Path) -> None:
    first, second = ["2026-11-24T10:00:01.5Z", '{"event": "run"}'], ["2026-11-24T10:00:01.500000001Z", '{"event": "x"}']
    third = ["2026-11-24T10:00:02Z", "metric val_accuracy=0.7"]
    unschedulable = {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]}
    play(
        cluster,
        {"job": RUNNING},
        {"job": RUNNING, "pods": [{"metadata": {"name": "p"}, "status": {"phase": "Pending", **unschedulable}}]},
        {"job": RUNNING, "pods": [pod("p", {"waiting": {"reason": "ContainerCreating"}}, "Pending")]},
        {"job": RUNNING, "pods": [pod("p", {"running": {}})], "logs": {"p": [first]}},
        {"error": "Unable to connect to the server: net/http: TLS handshake timeout"},
        {"job": RUNNING, "pods": [pod("p", {"running": {}})], "logs": {"p": [first, second]}},
        {"job": COMPLETE, "pods": [pod("p", exited(0), "Succeeded")], "logs": {"p": [first, second, third]}},
    )
    result = submit(*OPTIONS, "--wait", *RUN)
    assert result.code == 0
    events = [json.loads(line) for line in result.lines if line.startswith("{")]
    states = [(each["state"], each.get("why")) for each in events if each["event"] == "state"]
    assert states == [
        *(("Pending", None), ("Pending", "0/3 nodes are available"), ("Pending", None)),
        *(("Running", None), ("Complete", None)),
    ]
    assert [line for line in result.lines if line in (first[1], second[1], third[1])] == [first[1], second[1], third[1]]
    assert [each["event"] for each in events if each["event"] == "warning"] == ["warning"]


OOM = {"terminated": {"exitCode": 137, "finishedAt": "2026-11-24T10:05:00Z", "reason": "OOMKilled"}}
FULL = {"reason": "Evicted", "message": 'Usage of EmptyDir volume "scratch" exceeds the limit "20Gi". '}
PRESSED = {"reason": "Evicted", "message": "The node was low on resource: memory. "}
MESSAGE = json.dumps({"code": 65, "reason": "x.zip does not exist: check --data.", "step": None, "checkpoint": None})


@pytest.mark.parametrize(
    ("state", "pods", "code", "message"),
    [
        (failed("PodFailurePolicy"), [pod("p", exited(65, message=MESSAGE), "Failed")], 65, "x.zip does not exist"),
        (failed("PodFailurePolicy"), [pod("p", exited(2), "Failed")], 2, "PodFailurePolicy: why"),
        (failed("BackoffLimitExceeded"), [pod("p", exited(143), "Failed")], 143, "BackoffLimitExceeded"),
        (failed("BackoffLimitExceeded"), [pod("p", exited(137), "Failed")], 75, "BackoffLimitExceeded"),
        (failed("BackoffLimitExceeded"), [pod("p", OOM, "Failed")], 78, "OOMKilled"),
        (failed("BackoffLimitExceeded"), [pod("p", exited(143), "Failed", **FULL)], 78, "Evicted, Usage of EmptyDir"),
        (failed("BackoffLimitExceeded"), [pod("p", {}, "Failed", **PRESSED)], 75, "Evicted, The node was low"),
        (failed("BackoffLimitExceeded"), [pod("p", exited(75), "Failed")], 75, ""),
        (failed("BackoffLimitExceeded"), [pod("p", exited(1), "Failed")], 1, ""),
        (failed("BackoffLimitExceeded"), [pod("p", exited(127), "Failed")], 1, ""),
        (failed("BackoffLimitExceeded"), [], 75, "BackoffLimitExceeded"),
        (failed("DeadlineExceeded"), [], 75, "DeadlineExceeded"),
    ],
)
def test_wait_ends_with_the_jobs_exit_code(
    state: dict[str, Any], pods: list[Any], code: int, message: str, submit: Callable[..., Ended], cluster: Path
) -> None:
    play(cluster, {"job": state, "pods": pods})
    result = submit(*OPTIONS, "--wait", *RUN)
    assert (result.code, message in result.last) == (code, True), result.last
    assert result.last.startswith("Error: parta-")


def test_wait_ends_when_the_job_is_deleted(submit: Callable[..., Ended], cluster: Path) -> None:
    play(cluster, {"job": RUNNING}, {"error": 'Error from server (NotFound): jobs.batch "x" not found'})
    result = submit(*OPTIONS, "--wait", *RUN)
    assert (result.code, "the Job was deleted" in result.last) == (75, True)


def test_existing_job_is_refused(submit: Callable[..., Ended], cluster: Path) -> None:
    (cluster / "exists").write_text("mine")
    result = submit(*OPTIONS, "--name", "mine", *RUN)
    assert (result.code, "kubectl delete job mine" in result.last) == (78, True)


def test_missing_kubectl(submit: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    result = submit(*OPTIONS, *RUN)
    assert (result.code, "kubectl is not on PATH" in result.last) == (78, True)


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_unreachable_server_is_transient(
    submit: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}
    context = {"name": "c", "context": {"cluster": "c", "user": ""}}
    config = {"kind": "Config", "clusters": [cluster], "contexts": [context], "current-context": "c"}
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    result = submit(*OPTIONS, *RUN)
    assert (result.code, "refused" in result.last, "memcache" in result.last) == (75, True, False), result.last


def test_signal_ends_the_wait_but_not_the_job(cluster: Path, tmp_path: Path) -> None:
    play(cluster, {"job": RUNNING})
    command = [sys.executable, str(ROOT / "entrypoint.py"), "submit", *OPTIONS, "--wait", *RUN]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout
    next(line for line in child.stdout if '"state"' in line)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, "continues by itself" in err.splitlines()[-1]) == (143, True)


def test_merge_merges_named_items_and_replaces_other_lists() -> None:
    manifest = {"env": [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}], "args": ["a"], "kept": 1}
    patch = {"env": [{"name": "B", "value": "3"}, {"name": "C", "value": "4"}], "args": ["b"]}
    assert merge(manifest, patch) == {
        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "3"}, {"name": "C", "value": "4"}],
        "args": ["b"],
        "kept": 1,
    }


@pytest.mark.parametrize("content", [None, "[1", "- 1"])
def test_unreadable_manifest_is_refused(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "job.yaml").write_text(content)
    with pytest.raises(ConflictError, match="restore it from the release"):
        read_manifest("job.yaml", tmp_path)


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError"])
def test_wait_ends_for_a_container_that_cannot_start(
    reason: str, submit: Callable[..., Ended], cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_watch, "STUCK_S", 0.0)
    play(cluster, {"job": RUNNING, "pods": [pod("p", {"waiting": {"reason": reason, "message": "no"}}, "Pending")]})
    result = submit(*OPTIONS, "--wait", *RUN)
    assert (result.code, f"{reason}: no" in result.last) == (78, True), result.last
