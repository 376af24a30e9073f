"""What may be asked of the bench."""

import pytest

from inat_job.bench.request import STAGES, Request
from inat_job.errors import UsageError
from inat_job.knobs import parsed


def test_all_stages_are_measured_unless_some_are_named() -> None:
    assert parsed(Request, {"stages": None}).stages == STAGES
    assert parsed(Request, {"stages": "epoch, test"}).stages == ("epoch", "test")
    assert Request(stages=("epoch",)).trains
    assert Request(stages=("test",), baseline=True).trains
    assert not Request(stages=("test",)).trains


def test_numbers_are_read() -> None:
    assert parsed(Request, {"scale": "1,2, 8", "runs": "3"}) == Request(scale=(1, 2, 8), runs=3)
    with pytest.raises(UsageError, match="--scale is '1,x': it must be whole numbers separated by commas"):
        parsed(Request, {"scale": "1,x"})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runs": 0}, "--runs is 0: it must be at least 1."),
        ({"synthetic": 7}, "--synthetic is 7"),
        ({"scale": (1, 0)}, "--scale is 0"),
        ({"stages": ("nothing",)}, "--stages is 'nothing': it must be one of pull"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Request(**changes)  # type: ignore[arg-type]
