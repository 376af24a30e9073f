"""Log lines from which a platform reads metrics, `metric val_accuracy=0.7123`, and the regexes that read them.

SageMaker takes the regexes as MetricDefinitions, and a tuning job takes one of the metrics as its objective.
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
"""`device_use` and `data_wait` are shares of 1, of the device and of the wall time."""

_DECIMALS = 6
"""Always written as decimals, never with an exponent, which not every parser of numbers knows."""

DEFINITIONS: tuple[tuple[str, str], ...] = tuple((name, rf"metric {name}=([0-9.]+)") for name in NAMES)
"""Name and regex of each metric; the first group is the number."""


def lines(values: Mapping[str, object]) -> Iterator[str]:
    """The lines for those of `values` that a platform reads: numbers of at least 0. All others are skipped."""
    for name, value in values.items():
        if name in NAMES and isinstance(value, int | float) and math.isfinite(value) and value >= 0:
            yield f"metric {name}=" + f"{value:.{_DECIMALS}f}".rstrip("0").rstrip(".")
