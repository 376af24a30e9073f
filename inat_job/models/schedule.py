"""The learning rate as a pure function of the step."""

import math


def rate(step: int, total: int, warmup: float) -> float:
    """Factor on the peak rate at a step: linear rise over the share `warmup` of the steps, then half a cosine to zero
    (Loshchilov and Hutter, SGDR, 2016)."""
    rise = max(1, min(round(warmup * total), total - 1))
    if step < rise:
        return (step + 1) / rise
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, total - rise))))
