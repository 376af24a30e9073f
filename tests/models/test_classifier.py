"""The learning rate schedule of the LightningModule that both parts train."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inat_job.models.classifier import learning_rate_factor


@given(st.integers(1, 500), st.floats(0, 0.9))
@example(2, 0.75)
def test_learning_rate_warms_up_and_decays_to_zero(total: int, warmup: float) -> None:
    rates = [learning_rate_factor(step, total, warmup) for step in range(total + 1)]
    peak = rates.index(max(rates))
    assert max(rates) <= 1
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-9) or total <= 1
