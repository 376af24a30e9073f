"""job_watch.py: the state of a Job by its conditions, pods and times."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.platforms.k8s import job_watch
from tests.harness.fake_kubectl import COMPLETE, RUNNING, exited, failed, pod


def test_exit_code_of_the_pod_that_failed_the_job() -> None:
    early, late = "2026-11-24T10:00:00Z", "2026-11-24T10:09:00.5Z"
    pods = [pod("0", exited(75, late), index=0), pod("1", exited(77, early), index=1)]
    assert job_watch.exit_code_of(failed("PodFailurePolicy"), pods)[0] == 77
    assert job_watch.exit_code_of(failed("BackoffLimitExceeded"), pods)[0] == 75
    assert job_watch.exit_code_of(failed("BackoffLimitExceeded"), [*pods, pod("2", exited(0, "2027"))])[0] == 75
    assert job_watch.exit_code_of(RUNNING, pods) == (None, "")


def test_phase_of() -> None:
    assert job_watch.phase_of(RUNNING, []) == "Pending"
    assert job_watch.phase_of(RUNNING, [pod("p", {"running": {}})]) == "Running"
    assert job_watch.phase_of(COMPLETE, [pod("p", exited(0), "Succeeded")]) == "Complete"
    assert job_watch.phase_of(failed("DeadlineExceeded"), [pod("p", {"running": {}})]) == "Failed"


def test_leader_pods_are_index_0_newest_first() -> None:
    old, new = (pod(name, {"running": {}}, index=0, created=f"2026-11-24T10:0{name}:00Z") for name in "12")
    index_1 = pod("3", {"running": {}}, index=1, created="2026-11-24T10:03:00Z")
    assert [each["metadata"]["name"] for each in job_watch.leader_pods([old, index_1, new])] == ["2", "1"]


@pytest.mark.parametrize(
    ("reason", "message", "fix"),
    [
        ("ErrImagePull", "manifest unknown", "check --image, and --image-pull-secret for a private registry"),
        ("ImagePullBackOff", "", "check --image, and --image-pull-secret for a private registry"),
        ("CreateContainerConfigError", 'secret "keys" not found', "create what it names in the namespace"),
        ("CrashLoopBackOff", "", ""),
    ],
)
def test_start_problem_of_a_waiting_pod(reason: str, message: str, fix: str) -> None:
    waiting = {"reason": reason, "message": message}
    expected = ": ".join(filter(None, (reason, message, fix)))
    assert job_watch.start_problem([pod("p", {"waiting": waiting}, "Pending")]) == expected
    assert job_watch.start_problem([pod("p", {"waiting": {"reason": "ContainerCreating"}}, "Pending")]) == ""


@pytest.mark.parametrize(
    ("message", "fixes"),
    [
        (
            "0/3 nodes are available: 3 Insufficient nvidia.com/gpu",
            ["check --gpus, and whether the cluster has its GPU device plugin"],
        ),
        (
            "0/2 nodes are available: 2 Insufficient memory, 2 node(s) had untolerated taint {sku: gpu}",
            ["lower --cpus or --memory", "tolerate the taint by --patch"],
        ),
        (
            "0/2 nodes are available: 2 node(s) didn't match Pod's node affinity/selector",
            ["check --instance-type and --spot"],
        ),
        (
            "0/2 nodes are available: 2 Insufficient ephemeral-storage",
            ["lower --disk, or give the nodes larger disks"],
        ),
        ('persistentvolumeclaim "runs" not found', ["check --pvc"]),
        ("the machine is on fire", []),
    ],
)
def test_start_problem_of_a_pod_without_a_node(message: str, fixes: list[str]) -> None:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    expected = ": ".join(filter(None, ("Unschedulable", message, ", or ".join(fixes))))
    assert job_watch.start_problem([pod("p", {}, "Pending", conditions=[condition])]) == expected


def test_last_loss_is_that_of_the_pod_before_the_newest() -> None:
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    old = pod("1", killed, "Failed", created="2026-11-24T10:01:00Z")
    evicted = pod("2", {}, "Failed", created="2026-11-24T10:02:00Z", reason="Evicted", message="low on memory.")
    new = pod("3", {"running": {}}, created="2026-11-24T10:03:00Z")
    assert job_watch.last_loss([old, new]).startswith("OOMKilled, ")
    assert job_watch.last_loss([old, evicted, new]) == "Evicted, low on memory: submit it again"
    assert job_watch.last_loss([pod("0", exited(75), "Failed"), new]) == ""
    assert job_watch.last_loss([old]) == job_watch.last_loss([]) == ""


@given(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 999_999_999)), min_size=2, max_size=6))
def test_sort_key_orders_times_with_cut_fractions(times: list[tuple[int, int]]) -> None:
    def stamp(seconds: int, nanoseconds: int) -> str:
        fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
        return f"2026-11-24T10:00:{seconds:02d}{fraction}Z"

    assert sorted(times) == sorted(times, key=lambda each: job_watch.sort_key(stamp(*each)))
