"""What may be asked of the bench."""

import pytest

from inat_job.bench.request import STAGES, Request, names, numbers
from inat_job.errors import UsageError


def test_all_stages_are_measured_unless_some_are_named() -> None:
    assert names("") == STAGES
    assert names("epoch, test") == ("epoch", "test")
    assert Request(stages=("epoch",)).trains
    assert Request(stages=("test",), baseline=True).trains
    assert not Request(stages=("test",)).trains


def test_numbers_are_read() -> None:
    assert numbers("--scale", "1,2, 8") == (1, 2, 8)
    assert numbers("--scale", "") == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runs": 0}, "--runs is 0: it must be at least 1."),
        ({"synthetic": 7}, "--synthetic is 7"),
        ({"scale": (1, 0)}, "--scale is 0"),
        ({"stages": ("nothing",)}, "--stages has 'nothing'"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Request(**changes)  # type: ignore[arg-type]
