"""metric_lines.py: each regex reads its own metric from a log."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inat_job.telemetry.metric_lines import DEFINITIONS, NAMES, lines


def line(name: str, value: float) -> str:
    (only,) = lines({name: value})
    return only


@pytest.mark.parametrize(("name", "regex"), DEFINITIONS)
@given(value=st.floats(0, 1e9))
def test_each_regex_reads_its_own_line_only(name: str, regex: str, value: float) -> None:
    others = [line(other, 0.5) for other in NAMES if other != name]
    noise = json.dumps({"event": "epoch", **dict.fromkeys(NAMES, 0.25)})
    log = "\n".join([noise, *others, line(name, value), f"Error: {name} is bad."])
    (read,) = re.findall(regex, log)
    assert float(read) == pytest.approx(value, abs=1e-6)


def test_format_of_the_lines() -> None:
    assert line("val_accuracy", 0.7123) == "metric val_accuracy=0.7123"
    assert line("images_per_s", 100.0) == "metric images_per_s=100"
    assert dict(DEFINITIONS)["val_accuracy"] == "metric val_accuracy=([0-9.]+)"


def test_definitions_are_within_sagemakers_limits() -> None:
    assert len(DEFINITIONS) <= 40
    assert all(1 <= len(name) <= 255 and 1 <= len(regex) <= 500 for name, regex in DEFINITIONS)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.5])
def test_other_names_and_invalid_values_are_skipped(value: float) -> None:
    assert list(lines({"val_loss": value, "val_accuracy": 0.5, "epoch": 3, "why": "x"})) == [line("val_accuracy", 0.5)]
