"""platform.py: run ids from job names."""

from hypothesis import assume, given
from hypothesis import strategies as st

from inat_job.platforms.platform import run_id_from
from inat_job.settings import RUN_ID


@given(st.text(max_size=200))
def test_run_id_from_any_job_name(job_name: str) -> None:
    run_id = run_id_from(job_name)
    assert (run_id is None) == (job_name in ("", ".", ".."))
    assert run_id is None or RUN_ID.fullmatch(run_id)
    if RUN_ID.fullmatch(job_name):
        assert run_id == job_name


@given(st.text("abc-", min_size=65, max_size=80), st.integers(0, 999), st.integers(0, 999))
def test_long_job_names_give_different_run_ids(job_name: str, one: int, other: int) -> None:
    assume(one != other)
    assert run_id_from(f"{job_name}-{one}") != run_id_from(f"{job_name}-{other}")
