"""How kernels hold a whole row at once."""

from __future__ import annotations

import triton


def held(size: int) -> tuple[int, int]:
    """For a row of ``size`` numbers: the length of a program's block, and how many warps share it."""
    block = triton.next_power_of_2(size)
    # Eight numbers a thread: in 16-bit floats, what one instruction loads.
    return block, max(1, min(16, block // 256))
