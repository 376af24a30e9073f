"""How long is waited between attempts, after any number of them."""

from hypothesis import example, given
from hypothesis import strategies as st

from inat_job.storage.retry import FIRST_WAIT_S, LONGEST_WAIT_S, wait_s


@given(st.integers(1, 10**9))
@example(2000)
def test_a_wait_is_never_too_long_and_never_none(failed: int) -> None:
    assert FIRST_WAIT_S / 2 <= wait_s(failed) <= LONGEST_WAIT_S
