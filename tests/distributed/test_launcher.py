"""launcher.py: which rank decides how the job ends, and with which exit code."""

from hypothesis import given
from hypothesis import strategies as st

from inat_job.distributed.launcher import RankExit, job_exit

CODES = st.sampled_from([0, 1, 2, 65, 75, 77, 78, 143, -9, -15])


def test_success_of_rank_0_is_success_of_the_job() -> None:
    assert job_exit([RankExit(1, 0, False), RankExit(0, 0, False)]) == (0, 0)
    assert job_exit([RankExit(0, 0, False), RankExit(1, -9, True)]) == (0, 0), "the report is already stored"


def test_all_ranks_must_succeed_on_a_machine_without_rank_0() -> None:
    assert job_exit([RankExit(2, 0, False), RankExit(3, 0, False)])[1] == 0
    assert job_exit([RankExit(2, 0, False), RankExit(3, 78, False)]) == (3, 78)


def test_first_failure_decides_the_exit_code() -> None:
    assert job_exit([RankExit(1, 78, False), RankExit(0, 75, False)]) == (1, 78)
    assert job_exit([RankExit(1, -9, False), RankExit(0, 143, True)]) == (1, 75), "a lost rank may be tried again"
    assert job_exit([RankExit(1, 1, False), RankExit(0, 143, True), RankExit(2, -9, True)]) == (1, 1)


def test_rank_0_decides_after_a_stop() -> None:
    assert job_exit([RankExit(1, 143, True), RankExit(0, 143, True)]) == (0, 143)
    assert job_exit([RankExit(1, 75, True), RankExit(0, 143, True)]) == (0, 143), "it lost another rank"
    assert job_exit([RankExit(1, 143, False), RankExit(0, 143, False)]) == (0, 143), "another machine was stopped"
    assert job_exit([RankExit(1, 143, True), RankExit(0, -9, True)]) == (0, 143), "the grace period was over"
    assert job_exit([RankExit(1, 143, True), RankExit(0, 77, True)]) == (0, 77)


@given(st.lists(st.tuples(CODES, st.booleans()), min_size=1, max_size=8), st.integers(0, 3))
def test_job_exit_returns_a_known_rank_and_exit_code(ended: list[tuple[int, bool]], first: int) -> None:
    exits = [RankExit(first + number, code, signalled) for number, (code, signalled) in enumerate(ended)]
    rank, code = job_exit(exits)
    assert rank in {end.rank for end in exits}
    assert code in {0, 1, 2, 65, 75, 77, 78, 143}
    if code == 0:
        assert all(end.code == 0 for end in exits) or exits[0] == RankExit(0, 0, exits[0].signalled)
