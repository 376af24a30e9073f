"""The lines by which a platform reads metrics from the log, `metric val_accuracy=0.7123`, and the regexes that read
them: SageMaker takes these as MetricDefinitions, and a tuning job its objective.

https://docs.aws.amazon.com/sagemaker/latest/dg/define-train-metrics.html
"""

import math
from collections.abc import Iterator, Mapping

NAMES = (
    "train_loss",
    "val_loss",
    "val_accuracy",
    "test_loss",
    "test_accuracy",
    "images_per_s",
    "device_use",
    "data_wait",
)
"""`device_use` and `data_wait` are shares, of the device and of the wall time."""

_DIGITS = 6
"""Behind the point; always a point and never an exponent, of which not every reader of numbers knows."""

DEFINITIONS: tuple[tuple[str, str], ...] = tuple((name, rf"metric {name}=([0-9.]+)") for name in NAMES)
"""Name and regex of each; the first group is the number."""


def line(name: str, value: float) -> str:
    """The line that tells a metric. Raises ValueError for one that DEFINITIONS lacks, or for what is no number."""
    if name not in NAMES or not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value} is no metric that a platform reads")
    number = f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".")
    return f"metric {name}={number}"


def lines(values: Mapping[str, object]) -> Iterator[str]:
    """The lines of those among `values` that a platform reads; the others are passed over."""
    for name, value in values.items():
        if name in NAMES and isinstance(value, int | float) and math.isfinite(value) and value >= 0:
            yield line(name, value)
