"""Who speaks for several ranks, and with which code."""

from hypothesis import given
from hypothesis import strategies as st

from inat_job.distributed.launcher import RankExit, job_exit

CODES = st.sampled_from([0, 1, 2, 65, 75, 77, 78, 143, -9, -15])


def test_success_is_rank_0s() -> None:
    assert job_exit([RankExit(1, 0, False), RankExit(0, 0, False)]) == (0, 0)
    assert job_exit([RankExit(0, 0, False), RankExit(1, -9, True)]) == (0, 0), "the report is stored by then"


def test_on_a_machine_without_rank_0_all_must_succeed() -> None:
    assert job_exit([RankExit(2, 0, False), RankExit(3, 0, False)])[1] == 0
    assert job_exit([RankExit(2, 0, False), RankExit(3, 78, False)]) == (3, 78)


def test_the_first_cause_speaks() -> None:
    assert job_exit([RankExit(1, 78, False), RankExit(0, 75, False)]) == (1, 78)
    assert job_exit([RankExit(1, -9, False), RankExit(0, 143, True)]) == (1, 75), "a lost rank is worth another try"
    assert job_exit([RankExit(1, 1, False), RankExit(0, 143, True), RankExit(2, -9, True)]) == (1, 1)


def test_a_stop_is_told_by_rank_0_which_stores() -> None:
    assert job_exit([RankExit(1, 143, True), RankExit(0, 143, True)]) == (0, 143)
    assert job_exit([RankExit(1, 75, True), RankExit(0, 143, True)]) == (0, 143), "it saw another one leave"
    assert job_exit([RankExit(1, 143, False), RankExit(0, 143, False)]) == (0, 143), "another machine was stopped"
    assert job_exit([RankExit(1, 143, True), RankExit(0, -9, True)]) == (0, 143), "the grace was over"
    assert job_exit([RankExit(1, 143, True), RankExit(0, 77, True)]) == (0, 77)


@given(st.lists(st.tuples(CODES, st.booleans()), min_size=1, max_size=8), st.integers(0, 3))
def test_the_code_is_one_of_the_jobs_and_the_speaker_one_of_the_ranks(
    ended: list[tuple[int, bool]], first: int
) -> None:
    ends = [RankExit(first + number, code, asked) for number, (code, asked) in enumerate(ended)]
    rank, code = job_exit(ends)
    assert rank in {end.rank for end in ends}
    assert code in {0, 1, 2, 65, 75, 77, 78, 143}
    if code == 0:
        assert all(end.code == 0 for end in ends) or ends[0] == RankExit(0, 0, ends[0].asked)
