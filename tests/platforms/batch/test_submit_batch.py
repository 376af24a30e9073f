"""submit_batch.py: the requests to AWS Batch, following a job, and the exit code of its status."""

import json
import re
from pathlib import Path
from typing import Any

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st
from moto import mock_aws
from moto.backends import get_backend

from entrypoint import _line
from inat_job.commands.submit import checked
from inat_job.errors import ConflictError, JobError, NoPermissionError, UsageError
from inat_job.platforms.batch import submit_batch
from inat_job.platforms.batch.submit_batch import exit_code_of
from inat_job.platforms.submission import SubmitOptions, completed

ROLE = "arn:aws:iam::123456789012:role/birds"
OPTIONS: dict[str, Any] = {"image": "birds:1", "role": ROLE, "queue": "gpus"}
EXITED = "Essential container in task exited"
WORDS = ("parta", "--output", "s3://bucket/runs", "--seed", "3")


def built(*words: str, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    command = checked(words or WORDS, _line)
    request = completed(SubmitOptions(**{**OPTIONS, **options}), command, submit_batch.NEEDS)
    definition, job = submit_batch.build(request, command)
    return definition, job


def test_definition_from_options() -> None:
    definition, job = built(gpus=2, tags=("team=birds",), timeout=7200.0, region="eu-west-1")
    container = definition["containerProperties"]
    assert (container["image"], container["jobRoleArn"]) == ("birds:1", ROLE)
    assert container["command"] == [*WORDS, "--run-id", job["jobName"]]
    resources = {each["type"]: each["value"] for each in container["resourceRequirements"]}
    assert resources == {"VCPU": "8", "MEMORY": "28672", "GPU": "2"}
    assert container["linuxParameters"] == {"sharedMemorySize": 2048}
    assert container["environment"] == [{"name": "AWS_REGION", "value": "eu-west-1"}]
    assert (definition["tags"], definition["timeout"]) == ({"team": "birds"}, {"attemptDurationSeconds": 7200})
    assert job["jobDefinition"] == definition["jobDefinitionName"]


def test_no_gpu_resource_without_gpus() -> None:
    container = built(gpus=0, cpus=2, memory=1)[0]["containerProperties"]
    assert [each["type"] for each in container["resourceRequirements"]] == ["VCPU", "MEMORY"]
    assert container["linuxParameters"] == {"sharedMemorySize": 256}


def action_of(rules: list[dict[str, str]], code: int, status_reason: str, reason: str = "") -> str:
    """What Batch does: the action of the first rule whose patterns all match, and another attempt if none does."""

    def matches(pattern: str | None, value: str) -> bool:
        return pattern is None or (value.startswith(pattern[:-1]) if pattern.endswith("*") else value == pattern)

    for rule in rules:
        codes = ((rule.get("onExitCode"), str(code)), (rule.get("onStatusReason"), status_reason))
        if all(matches(*each) for each in (*codes, (rule.get("onReason"), reason))):
            return rule["action"]
    return "RETRY"


@pytest.mark.parametrize("nodes", [1, 3])
def test_retry_strategy_retries_transient_exits_only(nodes: int) -> None:
    strategy = built(nodes=nodes)[0]["retryStrategy"]
    rules = strategy["evaluateOnExit"]
    assert strategy["attempts"] == 10
    assert len(rules) <= 5
    retried = {code for code in range(1, 256) if action_of(rules, code, EXITED) == "RETRY"}
    assert retried == {75, 143}
    assert action_of(rules, 137, EXITED, "OutOfMemoryError: Container killed due to memory usage") == "EXIT"
    assert action_of(rules, 137, "Host EC2 (instance i-1) terminated.") == "RETRY"
    assert action_of(rules, 1, "Host EC2 (instance i-1) terminated.") == "RETRY"


def test_multi_node_definition() -> None:
    definition, _ = built(nodes=4, instance_type="g5.12xlarge", gpus=4)
    nodes = definition["nodeProperties"]
    [node_range] = nodes["nodeRangeProperties"]
    assert (definition["type"], nodes["numNodes"], nodes["mainNode"]) == ("multinode", 4, 0)
    assert (node_range["targetNodes"], node_range["container"]["instanceType"]) == ("0:3", "g5.12xlarge")
    assert "containerProperties" not in definition
    assert definition["retryStrategy"]["attempts"] == 10


def test_execution_role_pulls_the_image() -> None:
    assert built(execution_role=ROLE)[0]["containerProperties"]["executionRoleArn"] == ROLE


def patched(folder: Path, patch: str, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    (folder / "patch.yaml").write_text(patch)
    return built(patch=str(folder / "patch.yaml"), **options)


def test_variables() -> None:
    definition, _ = built(region="eu-west-1", env=("A=b,c=d", "AWS_REGION=us-east-1"))
    variables = {each["name"]: each["value"] for each in definition["containerProperties"]["environment"]}
    assert variables == {"AWS_REGION": "us-east-1", "A": "b,c=d"}


def test_patch_is_merged_into_both_requests(tmp_path: Path) -> None:
    plain = built(env=("A=1",))
    definition, job = patched(
        tmp_path,
        """
RegisterJobDefinition:
  retryStrategy: {attempts: 2}
  containerProperties:
    ulimits: [{name: nofile, softLimit: 1024, hardLimit: 4096}]
    resourceRequirements: [{type: VCPU, value: "2"}]
    environment: [{name: B, value: "2"}]
SubmitJob: {shareIdentifier: vision, schedulingPriorityOverride: 5}
""",
        env=("A=1",),
    )
    container, was = definition["containerProperties"], plain[0]["containerProperties"]
    assert container["ulimits"] == [{"name": "nofile", "softLimit": 1024, "hardLimit": 4096}]
    resources = {each["type"]: each["value"] for each in container["resourceRequirements"]}
    assert resources == {"VCPU": "2", "MEMORY": "14336", "GPU": "1"}
    assert container["environment"] == [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    assert (container["command"], container["image"]) == (was["command"], was["image"])
    assert definition["retryStrategy"] == {"attempts": 2, "evaluateOnExit": plain[0]["retryStrategy"]["evaluateOnExit"]}
    assert (job["shareIdentifier"], job["schedulingPriorityOverride"]) == ("vision", 5)
    assert definition["jobDefinitionName"] == job["jobDefinition"] != plain[1]["jobDefinition"]


def test_patch_of_the_machines_of_one_run(tmp_path: Path) -> None:
    ranges = "RegisterJobDefinition: {nodeProperties: {nodeRangeProperties: [{targetNodes: '0:1', %s}]}}"
    definition, _ = patched(tmp_path, ranges % "container: {privileged: true}", nodes=2)
    [machines] = definition["nodeProperties"]["nodeRangeProperties"]
    assert (machines["container"]["privileged"], machines["container"]["image"]) == (True, "birds:1")
    with pytest.raises(UsageError, match="which is the command"):
        patched(tmp_path, ranges % "container: {command: [sh]}", nodes=2)


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ("containerProperties: {}", "--patch has 'containerProperties': it must have objects under Register"),
        ("SubmitJob: 3", "--patch has 'SubmitJob': it must have objects under"),
        ("SubmitJob: {jobName: x}", "--patch changes jobName, which names the run: use --name"),
        ("SubmitJob: {containerOverrides: {command: [sh]}}", "overrides the definition: patch"),
        ("SubmitJob: {shareIdentifiers: x}", 'Unknown parameter in input: "shareIdentifiers"'),
        ("SubmitJob: {retryStrategy: {attempts: 2}}", "retryStrategy, which overrides the definition: patch Register"),
        ("RegisterJobDefinition: {containerProperties: {command: [sh]}}", "which is the command: give it after --"),
        ("RegisterJobDefinition: {containerProperties: null}", "which is the command: give it after --"),
        ("RegisterJobDefinition: {retryStrategy: {evaluateOnExit: []}}", "retryStrategy.evaluateOnExit, which retries"),
        ("RegisterJobDefinition: {retryStrategy: null}", "retryStrategy.evaluateOnExit, which retries"),
        ("RegisterJobDefinition: {containerProperties: {user: 3}}", "Invalid type for parameter containerProp"),
        (
            "RegisterJobDefinition: {containerProperties: {environment: [{name: INAT_SEED, value: '7'}]}}",
            "--patch changes INAT_SEED, a variable of the job itself",
        ),
        ("RegisterJobDefinition: {}", "--patch changes nothing"),
    ],
)
def test_invalid_patches_are_refused(tmp_path: Path, patch: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        patched(tmp_path, patch)


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        ({"pvc": ("a:/b",)}, "--pvc"),
        ({"env_from_secret": ("a",)}, "--env-from-secret"),
        ({"service_account": "a"}, "--service-account"),
        ({"image_pull_secret": ("a",)}, "--image-pull-secret"),
        ({"disk": 100}, "--disk"),
        ({"spot": True}, "--spot"),
        ({"namespace": "n"}, "--namespace"),
        ({"instance_type": "g5.xlarge"}, "--instance-type"),
        ({"retries": 10}, "--retries"),
    ],
)
def test_options_without_effect_are_refused(options: dict[str, Any], flag: str) -> None:
    with pytest.raises(UsageError, match=flag):
        built(**options)


def test_definition_name_depends_on_the_command() -> None:
    assert built() == built()
    one, other = built()[0], built(*WORDS, "--wandb", "off")[0]
    assert one["jobDefinitionName"] != other["jobDefinitionName"]
    assert built(name="birds")[1]["jobName"] == "birds"


def test_run_id_of_the_command_is_kept() -> None:
    command = built(*WORDS, "--run-id", "Birds.1")[0]["containerProperties"]["command"]
    assert command == [*WORDS, "--run-id", "Birds.1"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(JSON_VALUES)
def test_definition_matches_itself(wanted: Any) -> None:
    assert submit_batch.matches(json.loads(json.dumps(wanted)), wanted)


def test_definition_matches_despite_batch_defaults() -> None:
    wanted, _ = built(gpus=1, tags=("a=b",))
    found = json.loads(json.dumps(wanted))
    found |= {"revision": 3, "status": "ACTIVE", "parameters": {}}
    found["containerProperties"] |= {"volumes": [], "ulimits": []}
    found["containerProperties"]["resourceRequirements"].reverse()
    del found["containerProperties"]["environment"]  # it was empty
    for rule in found["retryStrategy"]["evaluateOnExit"]:
        rule["action"] = rule["action"].lower()
    assert submit_batch.matches(found, wanted)
    found["retryStrategy"]["evaluateOnExit"].reverse()
    assert not submit_batch.matches(found, wanted)


def failed(reason: str, code: int | None = None, container: str | None = None, **more: Any) -> dict[str, Any]:
    return {
        "status": "FAILED",
        "statusReason": reason,
        "container": {"reason": container} | ({} if code is None else {"exitCode": code}),
        **more,
    }


@pytest.mark.parametrize(
    ("job", "code", "message"),
    [
        ({"status": "SUCCEEDED"}, 0, ""),
        *((failed(EXITED, code), code, EXITED) for code in (1, 2, 65, 75, 77, 78, 143)),
        (failed(EXITED, 139), 1, EXITED),
        (failed(EXITED, 137), 75, EXITED),
        (failed(EXITED, 137, "OutOfMemoryError: Container killed due to memory usage"), 78, "--memory"),
        (failed("Host EC2 (instance i-0) terminated."), 75, "taken away"),
        (failed("Job attempt duration exceeded timeout", 137), 78, "--timeout"),
        (failed("Task failed to start", None, "CannotPullContainerError: not found"), 78, "--image"),
        (failed("MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT"), 78, "--gpus"),
        (failed("stop it", isTerminated=True), 143, "stop it"),
        (failed("stop it", 143, isTerminated=True), 143, "stop it"),
        (failed("stop it", 137, isTerminated=True), 75, "stop it"),
        (failed("something new"), 1, "something new"),
        ({"status": "RUNNING"}, None, ""),
    ],
)
def test_exit_code_of_job(job: dict[str, Any], code: int | None, message: str) -> None:
    found, reason = exit_code_of(job, job)
    assert found == code
    assert message in reason


def test_exit_code_of_last_attempt() -> None:
    attempts = [{"container": {"exitCode": 143}}, {"container": {"exitCode": 65}}]
    job = {"status": "FAILED", "statusReason": EXITED, "attempts": attempts}
    assert exit_code_of(job, job)[0] == 65


@pytest.fixture
def queue(aws_keys: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A queue of moto's Batch, whose jobs end at once."""
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    with mock_aws(config={"batch": {"use_docker": False}}):
        batch = boto3.client("batch")
        environment = batch.create_compute_environment(
            computeEnvironmentName="all", type="UNMANAGED", state="ENABLED", serviceRole=_role()
        )["computeEnvironmentArn"]
        order = [{"order": 1, "computeEnvironment": environment}]
        batch.create_job_queue(jobQueueName="gpus", state="ENABLED", priority=1, computeEnvironmentOrder=order)
        yield batch


def _role() -> str:
    iam = boto3.client("iam")
    return str(iam.create_role(RoleName="service", AssumeRolePolicyDocument="{}")["Role"]["Arn"])


def test_submit_reuses_definition_and_running_job(queue: Any) -> None:
    documents = list(built())
    name = documents[0]["jobDefinitionName"]

    def submitted(*sent: dict[str, Any]) -> str:
        return submit_batch.submit(SubmitOptions(**OPTIONS), list(sent)).name

    first = submitted(*documents)
    [job] = get_backend("batch")["123456789012"]["eu-west-1"]._jobs.values()
    job.status = "RUNNING"  # moto ends jobs at once
    assert submitted(*documents) == first
    found = queue.describe_job_definitions(jobDefinitionName=name)["jobDefinitions"]
    assert [each["revision"] for each in found] == [1]
    changed = {**documents[0], "retryStrategy": {"attempts": 2}}
    with pytest.raises(ConflictError, match="use --name"):
        submitted(changed, documents[1])
    found = queue.describe_job_definitions(jobDefinitionName=name)["jobDefinitions"]
    assert sorted(each["revision"] for each in found) == [1, 2]
    assert submitted(documents[0], {**documents[1], "jobName": "other"}) != first


def test_submit_again_after_the_end(queue: Any) -> None:
    documents = list(built())
    first = submit_batch.submit(SubmitOptions(**OPTIONS), documents)
    while first.read_state().code is None:
        pass
    assert submit_batch.submit(SubmitOptions(**OPTIONS), documents).name != first.name


def test_look_until_the_end(queue: Any) -> None:
    job = submit_batch.submit(SubmitOptions(**OPTIONS), list(built()))
    states = [job.read_state() for _ in range(10)]
    assert states[-1].phase == "SUCCEEDED"
    assert states[-1].code == 0
    with pytest.raises(ConflictError, match="has no job"):
        submit_batch.BatchJob("gone", job._batch, job._log).read_state()


def test_multi_node_job_ends_as_its_main_node() -> None:
    nodes = {"nodeProperties": {"numNodes": 2, "mainNode": 0}, "status": "FAILED", "statusReason": EXITED}
    described = {"j": nodes, "j#0": {"status": "FAILED", "container": {"exitCode": 75, "logStreamName": "main"}}}
    streams: list[str | None] = []

    class LogTail:
        def new(self, stream: str | None) -> list[str]:
            streams.append(stream)
            return ["line"]

    job = submit_batch.BatchJob("j", lambda _, jobs: {"jobs": [described[each] for each in jobs]}, LogTail())
    state = job.read_state()
    assert (state.phase, state.code, state.lines, streams) == ("FAILED", 75, ("line",), ["main"])


SWEEP = ("sweep", "--part", "a", "--output", "s3://bucket/runs")


def test_sweep_is_an_array_whose_children_share_its_id() -> None:
    definition, job = built(*SWEEP, workers=4)
    assert job["arrayProperties"] == {"size": 4}
    assert definition["type"] == "container"
    assert definition["containerProperties"]["command"] == [*SWEEP, "--run-id", job["jobName"]]
    assert "arrayProperties" not in built(*SWEEP)[1]


@pytest.mark.parametrize(
    ("status", "children", "code", "stream"),
    [
        ("PENDING", {"RUNNING": 2}, None, "first"),
        ("PENDING", {"RUNNING": 1, "SUCCEEDED": 1}, 0, "first"),
        ("SUCCEEDED", {"SUCCEEDED": 2}, 0, "first"),
        ("FAILED", {"FAILED": 1, "SUCCEEDED": 1}, 0, "second"),
        ("FAILED", {"FAILED": 2}, 78, "second"),
    ],
)
def test_array_is_done_with_its_first_worker(
    status: str, children: dict[str, int], code: int | None, stream: str
) -> None:
    array = {"status": status, "arrayProperties": {"size": 2, "statusSummary": children}}
    failed = {"status": "FAILED", "container": {"exitCode": 78, "logStreamName": "second"}}
    described = {"j": array, "j:0": {"status": "RUNNING", "container": {"logStreamName": "first"}}, "j:1": failed}
    streams: list[str | None] = []

    class LogTail:
        def new(self, stream: str | None) -> list[str]:
            streams.append(stream)
            return []

    def batch(operation: str, **asked: Any) -> dict[str, Any]:
        if operation == "list_jobs":
            assert asked == {"arrayJobId": "j", "jobStatus": "FAILED"}
            return {"jobSummaryList": [{"jobId": "j:1"}]}
        return {"jobs": [described[each] for each in asked["jobs"]]}

    assert submit_batch.BatchJob("j", batch, LogTail()).read_state().code == code
    assert streams == [stream]


def test_status_reason_of_a_waiting_job() -> None:
    class LogTail:
        def new(self, stream: str | None) -> list[str]:
            return []

    why = "MISCONFIGURATION:JOB_RESOURCE_REQUIREMENT"
    job = submit_batch.BatchJob("j", lambda _, jobs: {"jobs": [{"status": "RUNNABLE", "statusReason": why}]}, LogTail())
    state = job.read_state()
    assert (state.phase, state.code, state.reason) == (f"RUNNABLE ({why})", None, "")


def test_submit_multi_node_job(queue: Any) -> None:
    job = submit_batch.submit(SubmitOptions(**OPTIONS), list(built(nodes=2)))
    states = [job.read_state() for _ in range(10)]
    assert (states[-1].phase, states[-1].code) == ("SUCCEEDED", 0)


def test_missing_queue_or_credentials(queue: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    definition, job = built(queue="none")
    with pytest.raises(JobError, match=r"batch:ListJobs .*none") as refused:
        submit_batch.submit(SubmitOptions(**OPTIONS), [definition, job])
    assert refused.value.exit_code == 78
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/none")
    with pytest.raises(NoPermissionError, match="batch:DescribeJobDefinitions"):
        submit_batch.submit(SubmitOptions(**OPTIONS), [definition, job])
