"""jobset.py: the JobSet that `submit k8s --jobset` builds, sends and follows."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from inat_job.platforms.k8s.pod import detect_kubernetes
from tests.harness.fake_kubectl import RUNNING, exited, play, pod
from tests.harness.in_process import Ended
from tests.harness.jobset_api import check_jobset, job_in

NODES = ("k8s", "--image", "registry/inat-job:1", "--nodes", "2", "--name", "mine")
OPTIONS = (*NODES, "--jobset")
RUN = ("--", "parta", "--epochs", "3", "--output", "s3://bucket/runs")
DONE = {"status": {"conditions": [{"type": "Completed", "status": "True", "reason": "AllJobsCompleted"}]}}


def built(submit: Callable[..., Ended], *options: str) -> list[dict[str, Any]]:
    shown = submit(*options, "--dry-run", *RUN)
    assert shown.code == 0, shown.last
    return list(yaml.safe_load_all(shown.stdout))


@pytest.mark.parametrize("version", ["1.31", "1.33"])
@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--name", "a" * 48, "--nodes", "1024", "--gpus", "0"],
        ["--spot", "--namespace", "ml", "--queue", "gpus", "--tags", "team=vision", "--retries", "0", "--disk", "50"],
    ],
)
def test_schema_accepts_the_jobset(submit: Callable[..., Ended], more: list[str], version: str) -> None:
    run = ("--", "parta", "--output", "s3://b/runs", "--batch-size", "1024", "--accelerator", "cpu")
    [jobset] = yaml.safe_load_all(submit(*OPTIONS, *more, "--dry-run", *run).stdout)
    check_jobset(jobset, version)


@pytest.mark.parametrize("broken", ["field", "reason", "name", "pod"])
def test_schema_refuses_an_invalid_jobset(submit: Callable[..., Ended], broken: str) -> None:
    [jobset] = built(submit, *OPTIONS)
    if broken == "field":
        jobset["spec"]["maxRestarts"] = 1
    elif broken == "reason":
        jobset["spec"]["failurePolicy"]["rules"][0]["onJobFailureReasons"] = ["Other"]
    elif broken == "name":
        jobset["metadata"]["name"] = "a" * 54
    else:
        jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["container"] = []
    with pytest.raises(Exception, match="Additional|not one of|no label"):
        check_jobset(jobset)


def test_lost_machine_costs_one_restart_and_a_final_code_none(submit: Callable[..., Ended]) -> None:
    """By the JobSet's first matching rule, for the reason and the message of its failed Job."""
    [jobset] = built(submit, *OPTIONS, "--retries", "3")
    policy, job = jobset["spec"]["failurePolicy"], job_in(jobset)["spec"]
    assert (policy["maxRestarts"], policy["restartStrategy"]) == (3, "BlockingRecreate")
    assert (job["backoffLimit"], "backoffLimitPerIndex" in job, "maxFailedIndexes" in job) == (0, False, False)
    assert {each["action"] for each in job["podFailurePolicy"]["rules"]} == {"FailJob"}
    # As Kubernetes words them in pkg/controller/job/pod_failure_policy.go.
    drained = "Pod ml/mine-m-0-1-x has condition DisruptionTarget matching FailJob rule at index 0"
    final = "Container job for pod ml/mine-m-0-1-x failed with exit code 65 matching FailJob rule at index 1"
    lost = "Job has reached the specified backoff limit"
    ends = {("PodFailurePolicy", drained): "RestartJobSetAndIgnoreMaxRestarts"}
    ends |= {("PodFailurePolicy", final): "FailJobSet", ("BackoffLimitExceeded", lost): None}
    for (reason, message), action in ends.items():
        assert action_for(policy["rules"], reason, message) == action


def action_for(rules: list[dict[str, Any]], reason: str, message: str) -> str | None:
    """The action of the first rule that matches; None is a restart that counts."""
    for rule in rules:
        patterns = rule.get("onJobFailureMessagePatterns", [""])
        if reason in rule["onJobFailureReasons"] and any(re.search(each, message) for each in patterns):
            return str(rule["action"])
    return None


def test_jobset_has_the_metadata_and_the_pods_of_the_job(submit: Callable[..., Ended]) -> None:
    options = ("--queue", "gpus", "--tags", "team=vision", "--namespace", "ml")
    service, plain = built(submit, *NODES, *options)
    [jobset] = built(submit, *OPTIONS, *options)
    assert jobset["metadata"].keys() == plain["metadata"].keys()
    assert jobset["metadata"]["labels"] == plain["metadata"]["labels"]
    assert jobset["spec"]["ttlSecondsAfterFinished"] == plain["spec"]["ttlSecondsAfterFinished"]
    assert "ttlSecondsAfterFinished" not in job_in(jobset)["spec"]
    was, now = (each["spec"]["template"]["spec"] for each in (plain, job_in(jobset)))
    del was["subdomain"]
    own = [each for each in now["containers"][0]["env"] if each["name"] == "KUBERNETES_JOB_NAME"]
    assert "jobset-name" in own[0]["valueFrom"]["fieldRef"]["fieldPath"]
    for each in (was, now):
        each["containers"][0]["env"] = [
            each for each in each["containers"][0]["env"] if each["name"] != "KUBERNETES_JOB_NAME"
        ]
    assert was == now
    assert jobset["spec"]["network"]["subdomain"] not in (service["metadata"]["name"], "")


def test_machines_of_a_jobset_find_rank_0(submit: Callable[..., Ended], tmp_path: Path) -> None:
    [jobset] = built(submit, *OPTIONS)
    job, domain = job_in(jobset), f"{jobset['spec']['network']['subdomain']}.ml.svc.cluster.local"
    host = f"{job['metadata']['name']}-1"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hostname").write_text(f"{host}\n")
    (tmp_path / "etc/hosts").write_text(f"10.1.2.3\t{host}.{domain}\t{host}\n")
    variables = {each["name"]: each.get("value") for each in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    environment = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "KUBERNETES_JOB_NAME": "mine", "JOB_COMPLETION_INDEX": "1"}
    environment |= {"INAT_NUM_NODES": variables["INAT_NUM_NODES"]}
    platform = detect_kubernetes(environment, tmp_path)
    assert platform
    assert (platform.run_id, platform.node_rank, platform.num_nodes) == ("mine", 1, 2)
    assert platform.master_address == f"mine-m-0-0.{domain}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nodes", "1"], "--jobset is given and --nodes is 1"),
        (["--timeout", "6h"], "--timeout and --jobset are both given"),
        (["--name", "2nd"], "the name is '2nd': use a --name that begins with a letter"),
        (["--name", "a" * 49], "has at most 48 characters"),
    ],
)
def test_what_a_jobset_cannot_do(submit: Callable[..., Ended], options: list[str], message: str) -> None:
    refused = submit(*OPTIONS, *options, "--dry-run", *RUN)
    assert (refused.code, message in refused.last) == (2, True), refused.last


@pytest.mark.parametrize("target", ["batch", "sagemaker"])
def test_other_targets_have_no_jobset(submit: Callable[..., Ended], target: str) -> None:
    refused = submit(target, "--dry-run", "--nodes", "2", "--jobset", *RUN)
    assert (refused.code, "starts all machines again together anyway" in refused.last) == (2, True), refused.last


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ("{spec: {backoffLimit: 3}}", "spec.backoffLimit, which a JobSet needs to be 0: use --retries"),
        ("{kind: JobSet, spec: {suspend: true}}", "the kind 'JobSet', and only Job can be patched"),
        ("{spec: {podFailurePolicy: null}}", "--patch changes spec.podFailurePolicy, by which"),
    ],
)
def test_patch_of_the_job_in_a_jobset(submit: Callable[..., Ended], patch: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "patch.yaml").write_text(patch)
    refused = submit(*OPTIONS, "--dry-run", "--patch", str(tmp_path / "patch.yaml"), *RUN)
    assert (refused.code, message in refused.last) == (2, True), refused.last
    (tmp_path / "patch.yaml").write_text("{spec: {ttlSecondsAfterFinished: 60}, metadata: {annotations: {a: b}}}")
    [jobset] = built(submit, *OPTIONS, "--patch", str(tmp_path / "patch.yaml"))
    assert (jobset["spec"]["ttlSecondsAfterFinished"], jobset["metadata"]["annotations"]["a"]) == (60, "b")
    check_jobset(jobset)


def failed(reason: str) -> dict[str, Any]:
    message = "jobset failed (first failed job: mine-m-0)"
    return {"status": {"conditions": [{"type": "Failed", "status": "True", "reason": reason, "message": message}]}}


@pytest.mark.parametrize(
    ("state", "codes", "code", "message"),
    [
        (DONE, (0, 0), 0, ""),
        (failed("FailJobSetFailurePolicyAction"), (75, 65), 65, "FailJobSetFailurePolicyAction"),
        (failed("ReachedMaxRestarts"), (75, 137), 75, "ReachedMaxRestarts"),
        (failed("ReachedMaxRestarts"), (), 75, "ReachedMaxRestarts"),
    ],
)
def test_wait_follows_a_jobset(
    submit: Callable[..., Ended], cluster: Path, state: dict[str, Any], codes: tuple[int, ...], code: int, message: str
) -> None:
    pods = [pod(str(index), exited(each), "Failed", index=index) for index, each in enumerate(codes)]
    play(cluster, {"job": RUNNING}, {"job": state, "pods": pods})
    result = submit(*OPTIONS, "--wait", *RUN)
    assert (result.code, message in result.last) == (code, True), result.last
    calls = [json.loads(line)[1:] for line in (cluster / "calls.jsonl").read_text().splitlines()]
    assert ["get", "jobset", "mine", "-o", "json"] in calls
    assert ["get", "pods", "-l", "jobset.sigs.k8s.io/jobset-name=mine", "-o", "json"] in calls


@pytest.mark.parametrize(
    ("state", "message", "verbs"),
    [
        (RUNNING, "The JobSet mine already works on this run", ["create", "get"]),
        (DONE, "complete, and none is created: `kubectl delete jobset mine` first", ["create", "get"]),
        (failed("ReachedMaxRestarts"), "The JobSet mine (Failed) is replaced", ["create", "get", "delete", "create"]),
    ],
)
def test_jobset_of_the_same_name(
    submit: Callable[..., Ended], cluster: Path, state: dict[str, Any], message: str, verbs: list[str]
) -> None:
    [jobset] = built(submit, *OPTIONS)
    play(cluster, {"job": {**jobset, **state}})
    (cluster / "exists").write_text("mine")
    result = submit(*OPTIONS, *RUN)
    assert (result.code, message in result.stdout) == (0, True), result
    assert [json.loads(line)[1] for line in (cluster / "calls.jsonl").read_text().splitlines()] == verbs
