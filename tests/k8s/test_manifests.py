"""The manifests of k8s/, as kustomize renders them and as `submit k8s` builds them."""

import copy
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import entrypoint
from inat_job.commands import submit
from inat_job.configuration import configure
from inat_job.errors import BadDataError, ConflictError, NoPermissionError, UsageError
from inat_job.platforms import submission, yaml_patch
from inat_job.platforms.aws import spot
from inat_job.platforms.detect import detect_platform
from inat_job.platforms.k8s import job_watch, submit_k8s
from inat_job.platforms.k8s.pod import SPOT_VARIABLE, detect_kubernetes
from inat_job.telemetry import liveness
from tests.harness.in_process import in_process

ROOT = Path(__file__).parents[2]
JOBS = ("parta", "partb", "nodes", "sweep")
VERSIONS = ("1.31", "1.32", "1.33")
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
QUANTITY = r"\d+(\.\d+)?(m|[kMGTPE]|[KMGTPE]i)?"
FINAL = sorted(each.exit_code for each in (UsageError, BadDataError, NoPermissionError, ConflictError))
ENUMS = {
    "restartPolicy": {"Never"},
    "podReplacementPolicy": {"Failed"},
    "completionMode": {"Indexed", "NonIndexed"},
    "action": {"Ignore", "FailJob", "FailIndex"},
    "imagePullPolicy": {"IfNotPresent", "Always", "Never"},
    "terminationMessagePolicy": {"File", "FallbackToLogsOnError"},
    "effect": {"NoSchedule", "PreferNoSchedule", "NoExecute"},
    "medium": {"Memory", ""},
    "clusterIP": {"None"},
}
Manifest = dict[str, Any]


def rendered(name: str) -> list[Manifest]:
    """What `kubectl apply -k k8s/<name>` would send."""
    return list(yaml.safe_load_all(_kustomized(name)))


@cache
def _kustomized(name: str) -> str:
    kubectl = shutil.which("kubectl")
    if not kubectl:
        pytest.skip("needs kubectl, which renders without a cluster")
    done = subprocess.run([kubectl, "kustomize", str(ROOT / "k8s" / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def built(*words: str, **options: Any) -> list[Manifest]:
    """What `submit k8s` would send."""
    request = submission.SubmitOptions(
        **{"image": "r/i:1", "role": "arn:aws:iam::123456789012:role/inat-job", **options}
    )
    command = submit.checked(words or ("parta", "--output", "s3://b/runs"), entrypoint._line)
    return submit_k8s.build(submission.completed(request, command, submit_k8s.NEEDS), command)


BUILT: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        **{"namespace": "ml", "queue": "gpus", "region": "eu-west-1", "instance_type": "p4d.24xlarge", "gpus": 8},
        **{"nodes": 3, "cpus": 90, "memory": 1000, "disk": 900, "spot": True, "retries": 2, "timeout": 3600.0},
        "tags": ("team=vision", "example.com/cost-centre=a.1"),
    },
    "no-gpu": {"gpus": 0},
    "sweep": {"workers": 3, "retries": 2},
    "own-account": {
        **{"role": None, "service_account": "trainer", "image_pull_secret": ("registry",), "env": ("A=b",)},
        **{"env_from_secret": ("keys",), "pvc": ("runs:/runs", "images:/images")},
    },
}
SWEEP = ("sweep", "--part", "a", "--trials", "9", "--output", "s3://b/runs")


@pytest.fixture(params=[*(f"k8s/{name}" for name in JOBS), *BUILT])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    name = str(request.param)
    if name.startswith("k8s/"):
        return rendered(name.removeprefix("k8s/"))
    return built(*(SWEEP if name == "sweep" else ()), **BUILT[name])


def resource(manifests: list[Manifest], kind: str) -> Manifest:
    [found] = [each for each in manifests if each["kind"] == kind]
    return found


def pod_of(manifests: list[Manifest]) -> tuple[Manifest, Manifest]:
    """The spec of the pod, and its only container."""
    spec = resource(manifests, "Job")["spec"]["template"]["spec"]
    [container] = spec["containers"]
    return spec, container


def walk(tree: Any, path: str = "") -> Iterator[tuple[str, str, Any]]:
    """The path, key and value of every field."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield path, str(key), value
        yield from walk(value, f"{path}/{key}")


@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_schema_accepts_the_manifests(manifests: list[Manifest], version: str) -> None:
    for each in manifests:
        kubernetes_validate.validate(each, version, strict=True)


PAGE = (ROOT / "docs/clusters.md").read_text().replace("\\\n", " ")
CLUSTERS = re.findall(r"entrypoint\.py (submit k8s .*)", PAGE.replace("--wait", ""))


@pytest.mark.parametrize("command", CLUSTERS)
def test_kubernetes_schema_accepts_each_cluster_of_the_docs(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with in_process(monkeypatch, capsys) as run:
        shown = run(*command.split(" -- ")[0].split(), "--dry-run", "--", *command.split(" -- ")[1].split())
    assert shown.code == 0, shown.last
    for each in yaml.safe_load_all(shown.stdout):
        for version in VERSIONS:
            kubernetes_validate.validate(each, version, strict=True)


def test_each_patch_of_a_cluster_is_in_the_docs() -> None:
    used = {name for command in CLUSTERS for name in re.findall(r"k8s/clusters/(\S+)", command)}
    assert used == {path.name for path in (ROOT / "k8s/clusters").iterdir()}


@pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl, which renders without a cluster")
@pytest.mark.parametrize("name", [*sorted(path.name for path in (ROOT / "k8s/clusters").iterdir()), "deletions"])
def test_patch_is_merged_as_kustomize_does(name: str, tmp_path: Path) -> None:
    text = DELETIONS if name == "deletions" else (ROOT / "k8s/clusters" / name).read_text()
    job = submit_k8s.read_manifest("base/job.yaml")
    patch = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "inat-job"}, **yaml.safe_load(text)}
    kustomization = {"resources": ["job.yaml"], "patches": [{"path": "patch.yaml"}]}
    for file, content in (("job", job), ("patch", patch), ("kustomization", kustomization)):
        (tmp_path / f"{file}.yaml").write_text(yaml.safe_dump(content))
    done = subprocess.run(["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True)
    merged = yaml_patch.merge(job, patch)
    assert merged != job
    assert by_name(merged) == by_name(yaml.safe_load(done.stdout)), done.stderr


DELETIONS = """
spec:
  ttlSecondsAfterFinished: null
  template:
    spec:
      imagePullSecrets: [{name: registry}]
      tolerations: [{key: a, operator: Exists}]
      containers:
        - {name: sidecar, image: proxy, ports: [{containerPort: 80, name: x}]}
        - name: job
          env: [{name: WANDB_API_KEY, $patch: delete}, {name: A, value: b}]
          volumeMounts: [{name: shm, mountPath: /shm}, {mountPath: /dev/shm, $patch: delete}]
          securityContext: {capabilities: {drop: [NET_RAW]}}
"""


def by_name(tree: Any) -> Any:
    """The same with lists of named items in the order of their names, since kustomize puts new ones first."""
    if isinstance(tree, dict):
        return {key: by_name(value) for key, value in tree.items()}
    if isinstance(tree, list) and all(isinstance(each, dict) for each in tree):
        return sorted(map(by_name, tree), key=lambda each: str(each.get("name", "")) + str(each))
    return tree


def test_kubernetes_schema_refuses_an_invalid_field() -> None:
    [*_, job] = built()
    invalid = copy.deepcopy(job)
    invalid["spec"]["template"]["spec"]["terminationGraceSeconds"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(invalid, VERSIONS[0], strict=True)


def test_names_labels_quantities_and_enums(manifests: list[Manifest]) -> None:
    for each in manifests:
        assert re.fullmatch(LABEL, each["metadata"]["name"])
        for path, key, value in walk(each):
            if key in ENUMS:
                assert value in ENUMS[key], (path, key)
            if path.endswith(("/requests", "/limits")) or key == "sizeLimit":
                assert re.fullmatch(QUANTITY, value), (path, key)
            if path.endswith("/labels"):
                assert re.fullmatch(r"([a-z0-9.-]+/)?[A-Za-z0-9_.-]{1,63}", key)
                assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?", value)
    assert len({(each["kind"], each["metadata"]["name"]) for each in manifests}) == len(manifests)
    assert len({each["metadata"].get("namespace") for each in manifests}) == 1


def test_mounts_and_volumes_match(manifests: list[Manifest]) -> None:
    pod, container = pod_of(manifests)
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    volumes = {each["name"]: each for each in pod["volumes"]}
    assert set(mounts) == set(volumes)
    assert volumes[next(name for name in mounts if mounts[name] == "/dev/shm")]["emptyDir"]["medium"] == "Memory"
    scratch = volumes[next(name for name in mounts if mounts[name] == "/scratch")]["emptyDir"]
    assert scratch["sizeLimit"] == container["resources"]["requests"]["ephemeral-storage"]
    assert "medium" not in scratch


def test_references_between_fields(manifests: list[Manifest]) -> None:
    pod, container = pod_of(manifests)
    job = resource(manifests, "Job")
    accounts = [each["metadata"]["name"] for each in manifests if each["kind"] == "ServiceAccount"]
    assert pod["serviceAccountName"] in (accounts or ["trainer"])
    assert {rule["onExitCodes"]["containerName"] for rule in rules(job) if "onExitCodes" in rule} == {container["name"]}
    names = [each["name"] for each in container["env"]]
    assert len(names) == len(set(names))
    variables = {each["name"]: each.get("value") for each in container["env"]}
    assert variables["INAT_JOB_ALIVE_FILE"] in container["livenessProbe"]["exec"]["command"][-1]
    if SPOT_VARIABLE not in variables:
        assert variables["INAT_GRACE_SECONDS"] == str(pod["terminationGracePeriodSeconds"])


def rules(job: Manifest) -> list[Manifest]:
    return job["spec"]["podFailurePolicy"]["rules"]  # type: ignore[no-any-return]


def test_retries_by_exit_code(manifests: list[Manifest]) -> None:
    job = resource(manifests, "Job")
    first, second = rules(job)
    assert first == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert second["action"] == ("FailIndex" if "successPolicy" in job["spec"] else "FailJob")  # of a sweep
    assert (second["onExitCodes"]["operator"], second["onExitCodes"]["values"]) == ("In", FINAL)
    assert list(job_watch.FINAL_CODES) == FINAL
    assert job["spec"]["podReplacementPolicy"] == "Failed"
    assert job["spec"]["backoffLimit"] > 0
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_pod_has_least_privilege(manifests: list[Manifest]) -> None:
    pod, container = pod_of(manifests)
    assert not pod["automountServiceAccountToken"]
    user = re.search(r"^USER (\d+):(\d+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert user
    assert pod["securityContext"] == {
        **{"runAsNonRoot": True, "runAsUser": int(user[1]), "runAsGroup": int(user[2]), "fsGroup": int(user[2])},
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        **{"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True},
        "capabilities": {"drop": ["ALL"]},
    }
    assert not any(each.get("value") for each in container["env"] if re.search(r"KEY|SECRET|TOKEN", each["name"]))


def test_spot_notices_are_left_to_the_cluster(manifests: list[Manifest]) -> None:
    _, container = pod_of(manifests)
    variables = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    environment = {**variables, "AWS_EC2_METADATA_SERVICE_ENDPOINT": "http://127.0.0.1:9"}
    assert not spot.watch(lambda why: None, environment)


def test_karpenter_may_evict_the_pod_from_a_spot_machine() -> None:
    for spot_only in (False, True):
        template = resource(built(spot=spot_only), "Job")["spec"]["template"]
        assert ("karpenter.sh/do-not-disrupt" in template["metadata"]["annotations"]) != spot_only


def test_grace_of_a_spot_machine_is_left_to_its_cloud(tmp_path: Path) -> None:
    for spot_only, given in ((False, 120.0), (True, 15.0)):
        pod = resource(built(spot=spot_only), "Job")["spec"]["template"]["spec"]
        variables = {each["name"]: each.get("value", "") for each in pod["containers"][0]["env"]}
        vendor = tmp_path / "sys/devices/virtual/dmi/id/sys_vendor"
        vendor.parent.mkdir(parents=True, exist_ok=True)
        vendor.write_text("Google\n")
        place = detect_platform({**variables, "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path)
        grace_s = float(variables.get("INAT_GRACE_SECONDS", place.grace_s or 0))
        assert (grace_s, pod["terminationGracePeriodSeconds"]) == (given, 120)


def test_each_machine_has_retries_of_its_own_and_none_is_dispensable() -> None:
    for manifests, retries in ((rendered("nodes"), 6), (built(nodes=16), 6), (built(nodes=16, retries=3), 3)):
        spec = resource(manifests, "Job")["spec"]
        assert (spec["backoffLimitPerIndex"], spec["maxFailedIndexes"], spec["backoffLimit"]) == (retries, 0, 2**31 - 1)


def test_gpu_limit_and_toleration(manifests: list[Manifest]) -> None:
    pod, container = pod_of(manifests)
    gpus = container["resources"]["limits"].get("nvidia.com/gpu")
    assert gpus is None or re.fullmatch(r"[1-9]\d*", gpus)
    assert bool(gpus) == any(each["key"] == "nvidia.com/gpu" for each in pod.get("tolerations", ()))
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]


@pytest.mark.parametrize(("minutes", "code"), [(None, 0), (0, 0), (14, 0), (16, 1)])
def test_liveness_probe_fails_for_an_old_file(minutes: int | None, code: int, tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    if minutes is not None:
        alive.touch()
        touched = time.time() - 60 * minutes
        os.utime(alive, (touched, touched))
    probe = pod_of(built())[1]["livenessProbe"]["exec"]["command"]
    command = [word.replace("/scratch/alive", str(alive)) for word in probe]
    assert command != probe
    assert subprocess.run(command).returncode == code


def test_liveness_probe_uses_stale_minutes() -> None:
    assert (
        f"-mmin -{liveness.STALE_MINUTES} "
        in f"{pod_of(built())[1]['livenessProbe']['exec']['command'][-1]} ".replace(")", " ")
    )


@pytest.mark.parametrize("name", JOBS)
def test_arguments_are_valid_and_the_pod_is_detected(name: str) -> None:
    manifests = rendered(name)
    _, container = pod_of(manifests)
    command = submit.checked(container["args"], entrypoint._line)
    variables = {each["name"]: each.get("value") for each in container["env"]}
    variables |= {
        "KUBERNETES_JOB_NAME": resource(manifests, "Job")["metadata"]["name"],
        "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    }
    variables |= {"JOB_COMPLETION_INDEX": "1"} if name in ("nodes", "sweep") else {}
    platform = detect_kubernetes({key: value for key, value in variables.items() if value}, Path("/nonexistent"))
    assert platform
    assert (platform.run_id, platform.node_rank, platform.num_nodes) == (
        variables["KUBERNETES_JOB_NAME"] + ("-1" if name == "sweep" else ""),
        *((1, 2) if name == "nodes" else (0, 1)),
    )
    settings = {
        key: value for key, value in variables.items() if key.startswith("INAT_") and key != "INAT_NUM_NODES" and value
    }
    job = configure(command.configuration.settings.part, {}, (), None, environment=settings).settings
    assert (job.run.output, job.run.grace_seconds) == ("s3://my-bucket/runs", 120)


def test_machines_find_rank_0_by_the_headless_service() -> None:
    for manifests in (rendered("nodes"), built(nodes=3)):
        job, service = resource(manifests, "Job"), resource(manifests, "Service")
        pod, container = pod_of(manifests)
        machines = job["spec"]["completions"]
        assert (job["spec"]["parallelism"], job["spec"]["completionMode"]) == (machines, "Indexed")
        assert {"name": "INAT_NUM_NODES", "value": str(machines)} in container["env"]
        assert pod["subdomain"] == service["metadata"]["name"]
        assert service["spec"]["selector"] == {"batch.kubernetes.io/job-name": job["metadata"]["name"]}
        assert (service["spec"]["clusterIP"], service["spec"]["publishNotReadyAddresses"]) == ("None", True)


def test_workers_of_a_sweep_share_its_id_and_have_retries_of_their_own() -> None:
    for manifests, workers, retries in ((rendered("sweep"), 4, 6), (built(*SWEEP, **BUILT["sweep"]), 3, 2)):
        spec = resource(manifests, "Job")["spec"]
        assert (spec["completions"], spec["parallelism"], spec["completionMode"]) == (workers, workers, "Indexed")
        assert (spec["backoffLimitPerIndex"], spec["successPolicy"]) == (retries, {"rules": [{"succeededCount": 1}]})
        environment = {each["name"]: each for each in pod_of(manifests)[1]["env"]}
        assert environment["INAT_RUN_ID"]["valueFrom"] == environment["KUBERNETES_JOB_NAME"]["valueFrom"]
        assert "INAT_NUM_NODES" not in environment


@pytest.mark.parametrize(
    ("name", "options"), [("parta", {}), ("partb", {}), ("nodes", {"nodes": 2}), ("sweep", {"workers": 4})]
)
def test_submit_builds_what_kustomize_renders(name: str, options: dict[str, int]) -> None:
    expected = rendered(name)
    settings = yaml.safe_load((ROOT / "k8s/base/settings.yaml").read_text())["data"]
    job = resource(expected, "Job")
    submitted = built(
        *("sweep --part a".split() if name == "sweep" else ["parta"]),
        *("--output", settings["output"]),
        **{"image": settings["image"], "role": settings["role"], "instance_type": settings["instance-type"]},
        **{"name": job["metadata"]["name"], **options},
    )
    pod_of(submitted)[1]["env"].append({"name": "INAT_OUTPUT", "value": settings["output"]})
    pod_of(submitted)[1]["args"] = pod_of(expected)[1]["args"]
    assert comparable(submitted) == comparable(expected)


def comparable(manifests: list[Manifest]) -> dict[str, Manifest]:
    """The manifests by kind, with the variables sorted by name, and without the digest of what was submitted."""
    ordered = copy.deepcopy(manifests)
    resource(ordered, "Job")["metadata"].get("annotations", {}).pop(submit_k8s.REQUEST, None)
    resource(ordered, "Job")["metadata"].setdefault("annotations", {})
    pod_of(ordered)[1]["env"].sort(key=lambda each: each["name"])
    return {each["kind"]: each for each in ordered}


def test_comment_above_each_field() -> None:
    """A comment above each field says why it is set."""
    lines = (ROOT / "k8s/base/job.yaml").read_text().splitlines()
    for field in (
        *("name: inat-job", "backoffLimit", "podReplacementPolicy", "ttlSecondsAfterFinished", "restartPolicy"),
        *("terminationGracePeriodSeconds", "automountServiceAccountToken", "enableServiceLinks", "runAsNonRoot"),
        *(
            "fsGroup",
            "image:",
            "livenessProbe",
            "terminationMessagePath",
            "readOnlyRootFilesystem",
            "ephemeral-storage",
        ),
    ):
        number = next(number for number, line in enumerate(lines) if line.strip().lstrip("- ").startswith(field))
        assert lines[number - 1].strip().startswith("#"), field
