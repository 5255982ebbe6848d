"""Texts of different lengths side by side in one row of tokens, without padding."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from components.core.distributed.transfer import to_device

# The flash kernels' grid is laid out for a longest text. Few distinct values keep torch.compile from starting again.
_MAX_LENGTH_MULTIPLE = 512


@dataclass(frozen=True)
class PackedBatch:
    """The tokens of several texts in one row.

    Attributes:
        token_ids: int64 [tokens].
        positions: int64 [tokens], the position of each token in its own text.
        cu_seqlens: int32 [texts + 1]; text i is tokens ``cu_seqlens[i]`` to ``cu_seqlens[i + 1]``.
        rows: Which of the texts given to ``pack`` these are, in order.
        max_length: No text is longer; rounded up to a multiple of 512.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    cu_seqlens: torch.Tensor
    rows: list[int]
    max_length: int

    @property
    def tokens(self) -> int:
        """Return the number of tokens, none of them padding."""
        return self.token_ids.shape[0]


def balance_bins(lengths: Sequence[int], capacity: int, num_ranks: int = 1) -> list[list[int]]:
    """Return the positions of ``lengths`` in as few bins as hold about ``capacity`` tokens each, of nearly equal size.

    Bins are those of ``split_evenly``: the same lengths always give the same bins. Their number is a multiple of
    ``num_ranks``, unless there are fewer texts.
    """
    return split_evenly(lengths, min(len(lengths), count_bins(sum(lengths), capacity, num_ranks)))


def count_bins(tokens: int, capacity: int, num_ranks: int) -> int:
    """Return how many bins of ``capacity`` hold ``tokens``: at least one per rank, and the same number for each."""
    return max(1, -(-tokens // (capacity * num_ranks))) * num_ranks


def split_evenly(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Return the positions of ``lengths`` in ``count`` groups of nearly equal size; empty ones if there are too few.

    Longest processing time first (Graham, 1969): the longest text left goes to the smallest group, so that a group
    exceeds its fair share by less than one text.
    """
    groups: list[list[int]] = [[] for _ in range(count)]
    loads = [(0, group) for group in range(count)]
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        load, group = loads[0]
        groups[group].append(row)
        heapq.heapreplace(loads, (load + lengths[row], group))
    return groups


def pack(ids: Sequence[Sequence[int]], rows: Sequence[int], device: torch.device) -> PackedBatch:
    """Return the texts ``rows`` of the token ids ``ids`` as one batch on ``device``."""
    lengths = np.array([len(ids[row]) for row in rows])
    ends = lengths.cumsum()
    tokens = int(ends[-1])
    # One pass over Python's integers: the first bin of a step keeps the GPU waiting.
    token_ids = np.fromiter(itertools.chain.from_iterable(ids[row] for row in rows), np.int64, tokens)
    positions = np.arange(tokens) - np.repeat(ends - lengths, lengths)
    return PackedBatch(
        token_ids=to_device(token_ids, device),
        positions=to_device(positions, device),
        cu_seqlens=to_device(np.concatenate(([0], ends)).astype(np.int32), device),
        rows=list(rows),
        max_length=-(-int(lengths.max()) // _MAX_LENGTH_MULTIPLE) * _MAX_LENGTH_MULTIPLE,
    )


def pack_in_bins(ids: Sequence[Sequence[int]], capacity: int, device: torch.device) -> list[PackedBatch]:
    """Return all texts of ``ids`` in balanced bins of about ``capacity`` tokens."""
    return [pack(ids, rows, device) for rows in balance_bins([len(text) for text in ids], capacity)]
