"""platform.py: run ids from job names, integers from variables, and what a platform suggests and logs."""

from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from inat_job.errors import ConflictError
from inat_job.job_settings import RUN_ID
from inat_job.platforms.platform import NO_PLATFORM, Platform, first_int, read_int, run_id_from


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


@pytest.mark.parametrize(("text", "expected"), [("3", 3), (" 07 ", 7), ("0", 0), ("", None), ("  ", None)])
def test_read_int(text: str, expected: int | None) -> None:
    assert read_int({"X": text}, "X") == expected
    assert read_int({}, "X") is None


@pytest.mark.parametrize("text", ["-1", "1.0", "many", "٣"])
def test_read_int_refuses_other_texts(text: str) -> None:
    with pytest.raises(ConflictError, match="X is '"):
        read_int({"X": text}, "X")


def test_first_int_is_of_the_first_variable_that_is_set() -> None:
    assert first_int({"A": "", "B": "0", "C": "2"}, ("A", "B", "C")) == 0
    assert first_int({}, ("A", "B")) is None


def test_settings_and_log_fields_leave_out_what_is_unknown() -> None:
    platform = Platform("Kubernetes", run_id="r", scratch=Path("/s"), grace_s=30.0, num_nodes=2, master_address="host")
    expected = {"run.run_id": "r", "run.grace_seconds": 30.0, "data.cache_dir": "/s/cache"}
    assert platform.settings() == expected
    assert platform.log_fields() == {"name": "Kubernetes", "run_id": "r", "rank": 0, "world": 2, "master": "host"}
    assert NO_PLATFORM.log_fields() == {"name": "machine", "rank": 0, "world": 1}
