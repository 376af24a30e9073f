"""A kernel that writes outside of all memory, as a defective card or driver would: the error is reported later."""

import torch
import triton
from triton import language as tl


@triton.jit
def _write_far_away(pointer, offset) -> None:  # type: ignore[no-untyped-def]
    tl.store(pointer + offset, 1)


def lose_card() -> None:
    """Have the card fail, after which this process cannot use it. Raises torch.AcceleratorError."""
    _write_far_away[(1,)](torch.zeros(1, dtype=torch.int32, device="cuda"), 2**44)
    torch.cuda.synchronize()
