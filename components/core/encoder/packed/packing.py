"""Texts of different lengths side by side in rows without padding."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from components.core.distributed.transfer import to_device

# The flash kernels' grid is laid out for a longest text. Few distinct values keep torch.compile from starting again.
_LENGTH_STEP = 512


@dataclass(frozen=True)
class Bin:
    """The tokens of several texts in one row.

    ``token_ids`` and ``positions`` (place of a token in its own text): int64 [tokens]. ``bounds``: int32 [texts + 1],
    text i is tokens ``bounds[i]`` to ``bounds[i + 1]``. ``rows``: which texts these are, in order. ``max_length``: no
    text is longer; rounded up to a multiple of 512.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    bounds: torch.Tensor
    rows: list[int]
    max_length: int

    @property
    def tokens(self) -> int:
        """Number of tokens, none of them padding."""
        return self.token_ids.shape[0]


def balanced(lengths: Sequence[int], capacity: int, num_ranks: int = 1) -> list[list[int]]:
    """Positions of ``lengths`` in as few groups as hold about ``capacity`` tokens each, of nearly equal size.

    Longest processing time first (Graham, 1969): the longest text left goes to the emptiest group. A group exceeds
    its fair share by less than one text; with nothing but the lengths given, the result is always the same. Their
    number is a multiple of ``num_ranks``, unless there are fewer texts.
    """
    return spread(lengths, min(len(lengths), fewest(sum(lengths), capacity, num_ranks)))


def fewest(tokens: int, capacity: int, num_ranks: int) -> int:
    """How many bins of ``capacity`` hold ``tokens``: one at least, and the same number for each of ``num_ranks``."""
    return max(1, -(-tokens // (capacity * num_ranks))) * num_ranks


def spread(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Positions of ``lengths`` in ``count`` groups of nearly equal size; some are empty when there are too few."""
    groups: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, group) for group in range(count)]
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        load, group = loads[0]
        groups[group].append(row)
        heapq.heapreplace(loads, (load + lengths[row], group))
    return groups


def pack(ids: Sequence[Sequence[int]], rows: Sequence[int], device: torch.device) -> Bin:
    """The texts ``rows`` of ``ids`` as one bin on ``device``."""
    lengths = np.array([len(ids[row]) for row in rows])
    ends = lengths.cumsum()
    tokens = int(ends[-1])
    # One pass over Python's integers: the first bin of a step keeps the GPU waiting.
    token_ids = np.fromiter(itertools.chain.from_iterable(ids[row] for row in rows), np.int64, tokens)
    positions = np.arange(tokens) - np.repeat(ends - lengths, lengths)
    return Bin(
        token_ids=to_device(token_ids, device),
        positions=to_device(positions, device),
        bounds=to_device(np.concatenate(([0], ends)).astype(np.int32), device),
        rows=list(rows),
        max_length=-(-int(lengths.max()) // _LENGTH_STEP) * _LENGTH_STEP,
    )


def bins(ids: Sequence[Sequence[int]], capacity: int, device: torch.device) -> list[Bin]:
    """All texts of ``ids`` in balanced bins of about ``capacity`` tokens."""
    return [pack(ids, rows, device) for rows in balanced([len(text) for text in ids], capacity)]
