"""job_watch.py: the state of a Job by its conditions, pods and times."""

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


def test_start_problem_of_a_waiting_pod() -> None:
    waiting = {"reason": "ErrImagePull", "message": "manifest unknown"}
    assert job_watch.start_problem([pod("p", {"waiting": waiting}, "Pending")]) == "ErrImagePull: manifest unknown"
    assert job_watch.start_problem([pod("p", {"waiting": {"reason": "ContainerCreating"}}, "Pending")]) == ""


@given(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 999_999_999)), min_size=2, max_size=6))
def test_sort_key_orders_times_with_cut_fractions(times: list[tuple[int, int]]) -> None:
    def stamp(seconds: int, nanoseconds: int) -> str:
        fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
        return f"2026-11-24T10:00:{seconds:02d}{fraction}Z"

    assert sorted(times) == sorted(times, key=lambda each: job_watch.sort_key(stamp(*each)))
