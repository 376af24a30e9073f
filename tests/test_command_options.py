"""What may be asked of the bench."""

import pytest

from inat_job.command_options import STAGES, BenchOptions
from inat_job.errors import UsageError
from inat_job.options import parse_section


def test_all_stages_are_measured_unless_some_are_named() -> None:
    assert parse_section(BenchOptions, {"stages": None}).stages == STAGES
    assert parse_section(BenchOptions, {"stages": "epoch, test"}).stages == ("epoch", "test")
    assert BenchOptions(stages=("epoch",)).trains
    assert BenchOptions(stages=("test",), baseline=True).trains
    assert not BenchOptions(stages=("test",)).trains


def test_numbers_are_read() -> None:
    assert parse_section(BenchOptions, {"scale": "1,2, 8", "runs": "3"}) == BenchOptions(scale=(1, 2, 8), runs=3)
    with pytest.raises(UsageError, match="--scale is '1,x': it must be whole numbers separated by commas"):
        parse_section(BenchOptions, {"scale": "1,x"})


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
        BenchOptions(**changes)  # type: ignore[arg-type]
