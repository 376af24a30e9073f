"""submit k8s: what is sent and shown, by a kubectl that plays the cluster; and how each end is told."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from inat_job.commands import submit
from inat_job.errors import ConflictError, NoPermissionError, TransientError
from inat_job.platforms.k8s import job_watch
from inat_job.platforms.k8s.kubectl import Kubectl
from tests.harness.inside import Ended, inside

ROOT = Path(__file__).parents[3]
ROLE = "arn:aws:iam::123456789012:role/inat-job"
ASKED = ("k8s", "--image", "registry/inat-job:1", "--role", ROLE)
RUN = ("--", "parta", "--epochs", "3", "--output", "s3://bucket/runs")
INDEX = "batch.kubernetes.io/job-completion-index"


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that plays the cluster, with kubectl on PATH."""
    folder, programs = tmp_path / "cluster", tmp_path / "programs"
    folder.mkdir()
    programs.mkdir()
    kubectl = programs / "kubectl"
    kubectl.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT / "tests/harness/fake_kubectl.py"} "$@"\n')
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KUBECTL_FAKE", str(folder))
    monkeypatch.setattr(submit, "EVERY_S", 0.01)
    return folder


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Ended]]:
    with inside(monkeypatch, capsys, "submit") as run:
        yield run


def pod(
    name: str, state: dict[str, Any], phase: str = "Running", index: int | None = None, **more: Any
) -> dict[str, Any]:
    annotations = {} if index is None else {INDEX: str(index)}
    metadata = {"name": name, "creationTimestamp": more.pop("made", "2026-11-24T10:00:00Z"), "annotations": annotations}
    status = {"phase": phase, "containerStatuses": [{"name": "job", "state": state}], **more}
    return {"metadata": metadata, "status": status}


def ended(code: int, at: str = "2026-11-24T10:05:00Z", message: str = "") -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "finishedAt": at, "message": message, "reason": "Error"}}


def failed(reason: str, message: str = "why") -> dict[str, Any]:
    return {"status": {"conditions": [{"type": "Failed", "status": "True", "reason": reason, "message": message}]}}


COMPLETE = {"status": {"conditions": [{"type": "Complete", "status": "True"}]}}
ACTIVE: dict[str, Any] = {"status": {"active": 1}}


def plays(cluster: Path, *looks: dict[str, Any]) -> None:
    (cluster / "looks.json").write_text(json.dumps(looks))


def test_a_dry_run_shows_what_would_be_sent_with_placeholders_and_needs_no_kubectl(
    job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    shown = job("k8s", "--dry-run", "--", "parta", "--epochs", "3")
    assert shown.code == 0
    account, made = yaml.safe_load_all("\n".join(shown.lines))
    [container] = made["spec"]["template"]["spec"]["containers"]
    assert (container["image"], container["args"]) == ("<IMAGE>", ["parta", "--epochs", "3"])
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": "<ROLE>"}
    assert {"name": "INAT_OUTPUT", "value": "s3://<BUCKET>/runs"} in container["env"]
    assert made["metadata"]["name"].startswith("parta-")
    assert job("k8s", "--dry-run", "--", "parta", "--epochs", "3").lines == shown.lines


def test_the_name_is_the_runs_and_made_of_what_decides_the_result(job: Callable[..., Ended]) -> None:
    def name(*words: str) -> str:
        *_, made = yaml.safe_load_all("\n".join(job("k8s", "--dry-run", "--", *words).lines))
        return str(made["metadata"]["name"])

    assert name("parta", "--wandb", "off") == name("parta", "--output", "s3://x/y")
    assert name("parta") != name("parta", "--seed", "1")
    assert name("parta", "--run-id", "My.Run_1") == "my-run-1"


def test_without_a_dry_run_what_is_missing_is_named(job: Callable[..., Ended], cluster: Path) -> None:
    assert job("k8s", *RUN) == (
        2,
        "",
        "Error: --image, --role must be given to submit this; --dry-run shows the request without.",
    )
    copied = job("k8s", "--image", "<IMAGE>", "--role", ROLE, *RUN)
    assert (copied.code, "--image must be given" in copied.last) == (2, True)
    lost = job(*ASKED, "--", "parta")
    assert (lost.code, "--output is not set" in lost.last) == (2, True)
    assert not (cluster / "calls.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "The command is missing"),
        (["part"], "There is no command 'part'; did you mean part"),
        (["parta", "--epoch", "3"], "There is no option --epoch; did you mean --epochs?"),
        (["parta", "--epochs", "0"], "--epochs is 0"),
        (["parta", "--set", "train.epoch=1"], "did you mean train.epochs?"),
        (["bench", "--part", "a", "--stages", "epochs"], "--stages is 'epochs'"),
        (["prepare", "--data", "x", "--image-size", "1"], "--image-size is 1"),
        (["parta", "--output", "runs"], "--output is 'runs'"),
        (["parta", "--config", "a.toml"], "--config is 'a.toml'"),
        (["parta", "--print-config"], "--print-config"),
        (["submit", "k8s", "--", "parta"], "submit cannot be submitted as a job"),
        (["parta", "--resume", "never", "--force"], "--force would start the run again"),
        (["parta", "--resume", "never", "--set", "run.force=true"], "--force would start the run again"),
        (["train"], "train cannot be submitted as a job"),
        (["parta", "--data", "https://u:p@host/x.zip"], "a password or signature for https://host/x.zip,"),
        (
            ["parta", "--data", "https://host/x.zip?X-Amz-Signature=abc"],
            "a password or signature for https://host/x.zip,",
        ),
        (["test", "--checkpoint=https://u:p@host/r"], "a password or signature for https://host/r,"),
        (["parta", "--wandb-project", "AKIAABCDEFGHIJKLMNOP"], "AWS access key"),
        (["parta", "--wandb-project", "x-wandbsecret-x"], "the value of WANDB_API_KEY"),
    ],
)
def test_a_command_that_the_job_would_refuse_is_refused_here(
    words: list[str], says: str, job: Callable[..., Ended], cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "wandbsecret")
    refused = job(*ASKED, "--", *words)
    assert (refused.code, says in refused.last) == (2, True), refused.last
    assert "wandbsecret" not in refused.last.replace("x-wandbsecret-x", "")
    assert not (cluster / "calls.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--name", "Big"], "--name is 'Big'"),
        (["--namespace", "a_b"], "--namespace is 'a_b'"),
        (["--role", "inat"], "--role is 'inat'"),
        (["--queue", "-"], "--queue is '-'"),
        (["--tags", "a"], "--tags has 'a'"),
        (["--tags", "a=b c"], "--tags has 'a=b c'"),
        (["--tags", "a=-"], "--tags has a=-"),
        (["--memory", "2"], "--memory is 2"),
        (["--gpus", "-1"], "--gpus is -1"),
        (["--timeout", "1s"], "--timeout is 1.0"),
        (["--wandb-secret", "arn:x"], "--wandb-secret is 'arn:x', and k8s has no use for it"),
        (["--execution-role", "arn:x"], "--execution-role is 'arn:x', and k8s has no use for it"),
        (["--dry-run", "--wait"], "--dry-run submits nothing"),
    ],
)
def test_a_wrong_option_is_refused_with_its_mend(options: list[str], says: str, job: Callable[..., Ended]) -> None:
    refused = job(*ASKED, *options, *RUN)
    assert (refused.code, says in refused.last) == (2, True), refused.last


def test_this_machines_variables_have_no_say(job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    before = job("k8s", "--dry-run", *RUN).lines
    monkeypatch.setenv("INAT_SEED", "7")
    assert job("k8s", "--dry-run", *RUN).lines == before


def test_no_secret_of_this_machine_goes_along(job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "WANDB_API_KEY")
    for name in names:
        monkeypatch.setenv(name, f"planted-{name}")
    shown = job("k8s", "--dry-run", "--nodes", "2", *RUN)
    assert (shown.code, "planted" in "\n".join(shown.lines)) == (0, False)


def test_what_is_sent_is_what_the_dry_run_shows(job: Callable[..., Ended], cluster: Path) -> None:
    asked = (*ASKED, "--nodes", "2", "--namespace", "ml", "--tags", "team=vision")
    shown = list(yaml.safe_load_all("\n".join(job(*asked, "--dry-run", *RUN).lines)))
    assert not (cluster / "sent.yaml").exists()
    sent = job(*asked, *RUN)
    assert (sent.code, json.loads(sent.lines[-1])["event"]) == (0, "submitted")
    assert [each for each in yaml.safe_load_all((cluster / "sent.yaml").read_text()) if each] == shown
    calls = [json.loads(line) for line in (cluster / "calls.jsonl").read_text().splitlines()]
    assert [call[:2] for call in calls] == [["--namespace", "ml"]] * 2
    assert [call[3] for call in calls] == ["apply", "create"]
    assert {each["metadata"]["namespace"] for each in shown} == {"ml"}


def test_a_job_that_is_waited_for_is_followed_to_its_end(job: Callable[..., Ended], cluster: Path) -> None:
    first, second = ["2026-11-24T10:00:01.5Z", '{"event": "run"}'], ["2026-11-24T10:00:01.500000001Z", '{"event": "x"}']
    third = ["2026-11-24T10:00:02Z", "metric val_accuracy=0.7"]
    unschedulable = {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available"}]}
    plays(
        cluster,
        {"job": ACTIVE},
        {"job": ACTIVE, "pods": [{"metadata": {"name": "p"}, "status": {"phase": "Pending", **unschedulable}}]},
        {"job": ACTIVE, "pods": [pod("p", {"waiting": {"reason": "ContainerCreating"}}, "Pending")]},
        {"job": ACTIVE, "pods": [pod("p", {"running": {}})], "logs": {"p": [first]}},
        {"error": "Unable to connect to the server: net/http: TLS handshake timeout"},
        {"job": ACTIVE, "pods": [pod("p", {"running": {}})], "logs": {"p": [first, second]}},
        {"job": COMPLETE, "pods": [pod("p", ended(0), "Succeeded")], "logs": {"p": [first, second, third]}},
    )
    done = job(*ASKED, "--wait", *RUN)
    assert done.code == 0
    events = [json.loads(line) for line in done.lines if line.startswith("{")]
    states = [(each["state"], each.get("why")) for each in events if each["event"] == "state"]
    assert states == [
        *(("Pending", None), ("Pending", "0/3 nodes are available"), ("Pending", None)),
        *(("Running", None), ("Complete", None)),
    ]
    assert [line for line in done.lines if line in (first[1], second[1], third[1])] == [first[1], second[1], third[1]]
    assert [each["event"] for each in events if each["event"] == "warning"] == ["warning"]


WORDS = json.dumps({"code": 65, "reason": "x.zip does not exist: check --data.", "step": None, "checkpoint": None})


@pytest.mark.parametrize(
    ("end", "pods", "code", "says"),
    [
        (failed("PodFailurePolicy"), [pod("p", ended(65, message=WORDS), "Failed")], 65, "x.zip does not exist"),
        (failed("PodFailurePolicy"), [pod("p", ended(2), "Failed")], 2, "PodFailurePolicy: why"),
        (failed("BackoffLimitExceeded"), [pod("p", ended(143), "Failed")], 143, "BackoffLimitExceeded"),
        (failed("BackoffLimitExceeded"), [pod("p", ended(137), "Failed")], 75, "BackoffLimitExceeded"),
        (failed("BackoffLimitExceeded"), [pod("p", ended(75), "Failed")], 75, ""),
        (failed("BackoffLimitExceeded"), [pod("p", ended(1), "Failed")], 1, ""),
        (failed("BackoffLimitExceeded"), [pod("p", ended(127), "Failed")], 1, ""),
        (failed("BackoffLimitExceeded"), [], 75, "BackoffLimitExceeded"),
        (failed("DeadlineExceeded"), [], 75, "DeadlineExceeded"),
    ],
)
def test_each_end_has_its_code(
    end: dict[str, Any], pods: list[Any], code: int, says: str, job: Callable[..., Ended], cluster: Path
) -> None:
    plays(cluster, {"job": end, "pods": pods})
    done = job(*ASKED, "--wait", *RUN)
    assert (done.code, says in done.last) == (code, True), done.last
    assert done.last.startswith("Error: parta-")


def test_of_several_pods_the_one_counts_for_which_the_job_was_given_up() -> None:
    early, late = "2026-11-24T10:00:00Z", "2026-11-24T10:09:00.5Z"
    pods = [pod("0", ended(75, late), index=0), pod("1", ended(77, early), index=1)]
    assert job_watch.end_of(failed("PodFailurePolicy"), pods)[0] == 77
    assert job_watch.end_of(failed("BackoffLimitExceeded"), pods)[0] == 75
    assert job_watch.end_of(failed("BackoffLimitExceeded"), [*pods, pod("2", ended(0, "2027"))])[0] == 75
    assert job_watch.end_of(ACTIVE, pods) == (None, "")


def test_the_log_is_rank_0s_and_of_its_newest_pod() -> None:
    old, new = (pod(name, {"running": {}}, index=0, made=f"2026-11-24T10:0{name}:00Z") for name in "12")
    other = pod("3", {"running": {}}, index=1, made="2026-11-24T10:03:00Z")
    assert [each["metadata"]["name"] for each in job_watch.speakers([old, other, new])] == ["2", "1"]


def test_why_a_pod_does_not_start_is_shown() -> None:
    waiting = {"reason": "ErrImagePull", "message": "manifest unknown"}
    assert job_watch.trouble_of([pod("p", {"waiting": waiting}, "Pending")]) == "ErrImagePull: manifest unknown"
    assert job_watch.trouble_of([pod("p", {"waiting": {"reason": "ContainerCreating"}}, "Pending")]) == ""


@given(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 999_999_999)), min_size=2, max_size=6))
def test_times_are_ordered_however_their_fractions_are_cut(times: list[tuple[int, int]]) -> None:
    def stamp(seconds: int, nanoseconds: int) -> str:
        fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
        return f"2026-11-24T10:00:{seconds:02d}{fraction}Z"

    assert sorted(times) == sorted(times, key=lambda each: job_watch.order(stamp(*each)))


def test_a_job_that_somebody_deletes_ends_the_waiting(job: Callable[..., Ended], cluster: Path) -> None:
    plays(cluster, {"job": ACTIVE}, {"error": 'Error from server (NotFound): jobs.batch "x" not found'})
    done = job(*ASKED, "--wait", *RUN)
    assert (done.code, "deleted the Job" in done.last) == (75, True)


def test_a_job_of_that_name_is_no_other(job: Callable[..., Ended], cluster: Path) -> None:
    (cluster / "exists").write_text("mine")
    done = job(*ASKED, "--name", "mine", *RUN)
    assert (done.code, "kubectl delete job mine" in done.last) == (78, True)


@pytest.mark.parametrize(
    ("printed", "kind"),
    [
        ('Error from server (Forbidden): jobs.batch is forbidden: User "x" cannot create', NoPermissionError),
        ("error: You must be logged in to the server (Unauthorized)", NoPermissionError),
        ("Unable to connect to the server: dial tcp: lookup k8s: no such host", TransientError),
        (
            "Error from server (ServiceUnavailable): the server is currently unable to handle the request",
            TransientError,
        ),
        ("dial tcp 127.0.0.1:8080: the connection to localhost:8080 was refused: connection refused", ConflictError),
        ('The Job "x" is invalid: spec.template: Invalid value', ConflictError),
        ('Error from server (NotFound): namespaces "ml" not found', ConflictError),
    ],
)
def test_what_kubectl_prints_becomes_our_error(printed: str, kind: type[Exception], cluster: Path) -> None:
    (cluster / "refusal").write_text(printed)
    with pytest.raises(kind, match="kubectl apply says: ") as raised:
        Kubectl(None).run("apply", "-f", "-", given="kind: Job\nmetadata: {name: x}\n")
    assert printed in str(raised.value)


def test_without_kubectl_it_is_said(job: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    done = job(*ASKED, *RUN)
    assert (done.code, "kubectl is not on PATH" in done.last) == (78, True)


def test_kubernetes_fills_nothing_into_the_command(job: Callable[..., Ended]) -> None:
    done = job("k8s", "--dry-run", *RUN, "--wandb-project", "$(WANDB_API_KEY)$$x")
    made = list(yaml.safe_load_all("\n".join(done.lines)))[-1]
    args = made["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[-1] == "$$(WANDB_API_KEY)$$$$x", "each $$ comes out as one $"


@pytest.mark.parametrize(
    ("options", "words", "code", "says"),
    [
        (["--nodes", "2"], ["test", "--checkpoint", "s3://b/r"], 2, "--nodes is 2, and a test uses one machine"),
        (["--nodes", "2"], ["parta", "--batch-size", "33"], 78, "--batch-size is 33, for all of 2 devices"),
        (["--gpus", "4"], ["parta", "--batch-size", "34"], 78, "--batch-size is 34, for all of 4 devices"),
        (["--gpus", "4"], ["parta", "--batch-size", "33", "--accelerator", "cpu"], 0, ""),
        (["--gpus", "0"], ["parta", "--batch-size", "33"], 0, ""),
    ],
)
def test_machines_that_the_command_cannot_use_are_refused(
    options: list[str], words: list[str], code: int, says: str, job: Callable[..., Ended]
) -> None:
    refused = job("k8s", "--dry-run", *options, "--", *words)
    assert (refused.code, says in refused.last) == (code, True), refused.last


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")
def test_the_real_kubectl_that_finds_no_server_is_trouble_that_may_pass(
    job: Callable[..., Ended], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}
    context = {"name": "c", "context": {"cluster": "c", "user": ""}}
    config = {"kind": "Config", "clusters": [cluster], "contexts": [context], "current-context": "c"}
    (tmp_path / "config").write_text(json.dumps(config))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    done = job(*ASKED, *RUN)
    assert (done.code, "refused" in done.last, "memcache" in done.last) == (75, True, False), done.last


def test_a_signal_ends_the_waiting_and_not_the_job(cluster: Path, tmp_path: Path) -> None:
    plays(cluster, {"job": ACTIVE})
    command = [sys.executable, str(ROOT / "entrypoint.py"), "submit", *ASKED, "--wait", *RUN]
    child = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout
    next(line for line in child.stdout if '"state"' in line)
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=30)
    assert (child.returncode, "continues by itself" in err.splitlines()[-1]) == (143, True)
