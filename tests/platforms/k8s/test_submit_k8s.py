"""submit_k8s.py: what `submit k8s` shows and sends, with a fake kubectl."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from inat_job.errors import ConflictError
from inat_job.platforms.k8s import job_watch
from inat_job.platforms.k8s.submit_k8s import read_manifest
from tests.harness.children import children, wait_for_end, wait_for_event
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
    [manifest] = yaml.safe_load_all("\n".join(dry_run.lines))
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["args"]) == ("<IMAGE>", ["parta", "--epochs", "3"])
    assert "serviceAccountName" not in manifest["spec"]["template"]["spec"]
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

BAD_DATA = pod("p", exited(65, message=MESSAGE), "Failed")


@pytest.mark.parametrize(
    ("state", "pods", "code", "message"),
    [
        (failed("PodFailurePolicy"), [BAD_DATA], 65, "x.zip does not exist"),
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


def submitted_job(submit: Callable[..., Ended], *options: str) -> dict[str, Any]:
    """The Job that `submit` would send, as the API server has it afterwards."""
    *_, job = yaml.safe_load_all(submit(*options, "--dry-run", *RUN).stdout)
    return dict(job)


def verbs(cluster: Path) -> list[str]:
    return [json.loads(line)[1] for line in (cluster / "calls.jsonl").read_text().splitlines()]


MINE = (*OPTIONS, "--name", "mine")
BEING_DELETED = {"deletionTimestamp": "2026-11-24T10:00:00Z"}


@pytest.mark.parametrize(
    ("state", "metadata", "other", "code", "message", "replaced"),
    [
        (RUNNING, {}, [], 0, "already works on this run", False),
        (COMPLETE, {}, [], 0, "is already complete", False),
        (failed("BackoffLimitExceeded"), {}, [], 0, "mine (Failed) is replaced", True),
        (RUNNING, BEING_DELETED, [], 0, "mine (Terminating) is replaced", True),
        (COMPLETE, {}, ["--spot"], 0, "mine (Complete) is replaced", True),
        (failed("BackoffLimitExceeded"), {}, ["--spot"], 0, "mine (Failed) is replaced", True),
        (RUNNING, {}, ["--spot"], 78, "submitted with other options", False),
        (failed("DeadlineExceeded"), {"labels": {}}, [], 78, "is another program's: use --name", False),
    ],
)
def test_job_of_the_same_name(
    state: dict[str, Any],
    metadata: dict[str, Any],
    other: list[str],
    code: int,
    message: str,
    replaced: bool,
    submit: Callable[..., Ended],
    cluster: Path,
) -> None:
    job = submitted_job(submit, *MINE, *other)
    play(cluster, {"job": {**job, **state, "metadata": {**job["metadata"], **metadata}}})
    (cluster / "exists").write_text("mine")
    result = submit(*MINE, *RUN)
    assert (result.code, message in (result.last if code else result.stdout)) == (code, True), result
    ending = ["delete", "create"] if replaced else []
    assert verbs(cluster) == ["apply", "create", "get", *ending]


def test_job_deleted_meanwhile_is_created(submit: Callable[..., Ended], cluster: Path) -> None:
    play(cluster, {"error": 'Error from server (NotFound): jobs.batch "mine" not found'})
    (cluster / "exists").write_text("mine")
    result = submit(*MINE, *RUN)
    assert (result.code, "already exists" in result.last) == (78, True), "the fake's own list still has it"
    assert verbs(cluster) == ["apply", "create", "get", "create"]


def test_wait_follows_the_job_that_already_works(submit: Callable[..., Ended], cluster: Path) -> None:
    job = submitted_job(submit, *MINE)
    play(cluster, {"job": {**job, **RUNNING}}, {"job": {**job, **failed("PodFailurePolicy")}, "pods": [BAD_DATA]})
    (cluster / "exists").write_text("mine")
    result = submit(*MINE, "--wait", *RUN)
    assert (result.code, "x.zip does not exist" in result.last) == (65, True), result.last


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
    with children(tmp_path) as started:
        child = started.start(["submit", *OPTIONS, "--wait", *RUN])
        wait_for_event(child, "state")
        child.send_signal(signal.SIGTERM)
        code, last = wait_for_end(child, 30)
    assert (code, "continues by itself" in last) == (143, True)


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


def test_account_and_secrets_of_the_cluster(submit: Callable[..., Ended]) -> None:
    options = "--service-account trainer --image-pull-secret a --image-pull-secret b --env-from-secret keys".split()
    job = submitted_job(submit, "k8s", "--image", "r/i:1", *options)
    spec = job["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "trainer"
    assert spec["imagePullSecrets"] == [{"name": "a"}, {"name": "b"}]
    assert spec["containers"][0]["envFrom"] == [{"secretRef": {"name": "keys"}}]


def test_claim_is_mounted_and_may_hold_the_output(submit: Callable[..., Ended]) -> None:
    words = ["--", "parta", "--output", "/runs/inat"]
    claims = ["--pvc", "runs:/runs", "--pvc", "images:/images"]
    for outside in ("/runs/inat", "/images/../runs", "/images2", "file:///runs", "https://host/images"):
        refused = submit("k8s", "--dry-run", *claims[2:], "--", "parta", "--output", outside)
        assert (refused.code, "or a folder of a --pvc" in refused.last) == (2, True)
    assert submit("k8s", "--dry-run", *claims, "--", "parta", "--output", "file:///runs").code == 0
    [job] = yaml.safe_load_all(submit("k8s", "--dry-run", *claims, *words).stdout)
    spec = job["spec"]["template"]["spec"]
    mounts = {each["mountPath"]: each["name"] for each in spec["containers"][0]["volumeMounts"]}
    volumes = {each["name"]: each for each in spec["volumes"]}
    assert {*mounts} == {"/scratch", "/dev/shm", "/runs", "/images"}
    assert volumes[mounts["/images"]]["persistentVolumeClaim"] == {"claimName": "images"}


def test_variables_stay_as_they_are(submit: Callable[..., Ended]) -> None:
    given = ["--env", "A=x,y = $(WANDB_API_KEY) ", "--env", "AWS_EC2_METADATA_DISABLED=false", "--env", "EMPTY="]
    given += ["--env", "TOKENIZERS_PARALLELISM=false"]
    job = submitted_job(submit, *OPTIONS, *given)
    variables = {each["name"]: each.get("value") for each in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert (variables["A"], variables["EMPTY"]) == ("x,y = $$(WANDB_API_KEY) ", "")
    assert variables["AWS_EC2_METADATA_DISABLED"] == "false"


def test_patch_is_merged_into_the_job(submit: Callable[..., Ended], tmp_path: Path) -> None:
    patch = tmp_path / "patch.yaml"
    patch.write_text(
        """
spec:
  backoffLimit: 2
  template:
    spec:
      terminationGracePeriodSeconds: 25
      nodeSelector: {pool: gpus}
      tolerations: [{key: sku, operator: Exists}]
      volumes:
        - {name: scratch, emptyDir: null, persistentVolumeClaim: {claimName: fast}}
        - {name: certificates, secret: {secretName: ca}}
      containers:
        - name: job
          livenessProbe: null
          resources: {limits: {memory: 20Gi}}
          env: [{name: AWS_CA_BUNDLE, value: /certificates/ca.crt}]
          volumeMounts: [{name: certificates, mountPath: /certificates}]
        - {name: sidecar, image: proxy}
---
kind: ServiceAccount
metadata: {annotations: {team: vision}}
"""
    )
    plain, patched = (
        list(yaml.safe_load_all(submit(*OPTIONS, *more, "--dry-run", *RUN).stdout))
        for more in ([], ["--patch", str(patch)])
    )
    assert patched[0]["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": ROLE, "team": "vision"}
    was, now = (each[1]["spec"]["template"]["spec"] for each in (plain, patched))
    assert patched[1]["spec"]["podFailurePolicy"] == plain[1]["spec"]["podFailurePolicy"]
    assert (patched[1]["spec"]["backoffLimit"], now["nodeSelector"]) == (2, {"pool": "gpus"})
    assert now["tolerations"] == [{"key": "sku", "operator": "Exists"}]
    assert now["volumes"][0] == {"name": "scratch", "persistentVolumeClaim": {"claimName": "fast"}}
    container, sidecar = now["containers"]
    assert (container["image"], container["args"]) == ("registry/inat-job:1", list(RUN[1:]))
    assert "livenessProbe" not in container
    assert container["resources"]["limits"] == {"memory": "20Gi", "nvidia.com/gpu": "1"}
    assert [each["mountPath"] for each in container["volumeMounts"]] == ["/scratch", "/dev/shm", "/certificates"]
    assert {"name": "INAT_GRACE_SECONDS", "value": "25"} in container["env"]
    assert len(container["env"]) == len(was["containers"][0]["env"]) + 1
    assert sidecar == {"name": "sidecar", "image": "proxy"}


def in_pod(text: str) -> str:
    return f"{{spec: {{template: {{spec: {{{text}}}}}}}}}"


def in_container(text: str) -> str:
    return in_pod(f"containers: [{{name: job, {text}}}]")


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (in_pod("restartPolicy: OnFailure"), "spec.template.spec.restartPolicy, by which the job's exit codes"),
        ("{spec: {podFailurePolicy: null}}", "--patch changes spec.podFailurePolicy, by which"),
        ("{spec: {podReplacementPolicy: TerminatingOrFailed}}", "two writers"),
        ("{spec: {completions: 2}}", "spec.completions, which is --nodes or --workers"),
        ("{spec: {template: null}}", "--patch changes spec.template.spec.restartPolicy"),
        ("{metadata: {name: other}}", "metadata.name, which names the run: use --name"),
        ("{metadata: {namespace: other}}", "metadata.namespace, which is --namespace"),
        (in_container("args: [partb]"), "containers.job.args, which is the command"),
        (in_container("command: [sh]"), "containers.job.command, which is the command"),
        (in_container("image: other"), "containers.job.image, which is --image"),
        (in_container("$patch: delete"), "containers.job."),
        (in_pod("$patch: replace"), "--patch has $patch: 'replace'"),
        (in_container("env: [{name: INAT_SEED, value: '7'}]"), "--patch changes INAT_SEED, a variable of the job"),
        (in_container("env: [{name: KUBERNETES_JOB_NAME, $patch: delete}]"), "--patch changes KUBERNETES_JOB_NAME"),
        (
            in_container("env: [{name: DB_PASSWORD, value: hunter2hunter2}]"),
            "--tags or --patch sets DB_PASSWORD",
        ),
        (
            in_container("env: [{name: DB, value: 'x://u:hunter2@h/'}]"),
            "--tags or --patch holds a password or signature",
        ),
        (in_container("env: DB=hunter2"), "--patch sets env, which must be a list"),
        (in_pod("volumes: [{name: shm, $patch: delete}]"), "leaves a mount of shm without its volume"),
        (in_pod("initContainers: [{name: x, volumeMounts: [{name: y, mountPath: /y}]}, 3]"), "leaves a mount of y"),
        ("{tolerations: []}", "--patch has 'tolerations' at its top: it must have kind, metadata, spec"),
        (
            "{kind: Deployment, spec: {}}",
            "--patch has the kind 'Deployment', and only ServiceAccount, Job can be patched",
        ),
        ("{kind: [Job], spec: {}}", "--patch has the kind ['Job'], and only"),
        (in_pod("volumes: [{name: [x]}]"), "leaves a mount of scratch without its volume"),
        (in_pod("subdomain: x"), "--patch changes spec.template.spec.subdomain, which is --nodes"),
        ("{kind: Job}", "--patch changes nothing by kind"),
        ("{spec: {backoffLimit: 6}}", "--patch changes nothing by spec"),
        ("", "(it contains no object)"),
        ("[1]", "(it contains no object)"),
        ("{a: [", "which cannot be read ("),
        ("{spec: {on: true}}", "(the key True is no text, write it in quotes)"),
        ("{metadata: {labels: {since: 2026-01-01}}}", "(2026-01-01 is neither text nor number, write it in quotes)"),
        ("&a {spec: *a}", "(it contains itself)"),
        (None, "(No such file or directory)"),
    ],
)
def test_invalid_patches_are_refused(
    patch: str | None, message: str, submit: Callable[..., Ended], tmp_path: Path
) -> None:
    file = tmp_path / "patch.yaml"
    if patch is not None:
        file.write_text(patch)
    refused = submit(*OPTIONS, "--dry-run", "--patch", str(file), *RUN)
    assert (refused.code, message in refused.last) == (2, True), refused.last
    assert "hunter2" not in refused.last + refused.stdout
