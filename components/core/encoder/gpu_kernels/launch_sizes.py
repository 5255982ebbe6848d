"""Launch sizes of kernels whose programs each work on whole rows."""

from __future__ import annotations

import triton


def calculate_row_launch(size: int) -> tuple[int, int]:
    """Return BLOCK_SIZE and num_warps of a program that holds a row of ``size`` numbers in registers."""
    block_size = triton.next_power_of_2(size)
    # Eight numbers per thread: in 16-bit floats, what one instruction loads.
    return block_size, max(1, min(16, block_size // 256))
