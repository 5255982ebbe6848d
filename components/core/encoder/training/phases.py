"""Phases of a batch: how it is computed when the activations of all its texts do not fit into memory at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from components.core.encoder.packed.packing import balance_bins, count_bins, split_evenly

# A layer computed again costs one forward pass more beside one forward and two for the backward pass.
_RECOMPUTE_COST = 1 / 3


@dataclass(frozen=True)
class Phase:
    """Bins of texts whose activations are kept together, and the groups whose loss they suffice for.

    Attributes:
        bins: Rows of texts, every text in one bin.
        groups: Positions of groups.
        recompute_layers: The first layers, of which only the inputs are kept.
    """

    bins: list[list[int]]
    groups: list[int]
    recompute_layers: int

    @property
    def rows(self) -> list[int]:
        """Return the texts of all bins, one bin after the other."""
        return list(itertools.chain.from_iterable(self.bins))


def plan_phases(
    groups: Sequence[Sequence[int]], lengths: Sequence[int], *, capacity: int, layers: int, num_ranks: int = 1
) -> list[Phase]:
    """Return phases whose losses, summed, are exactly the loss of the whole batch, in whichever way is cheapest.

    Either every bin is a phase of its own and a text shared by groups of two bins is encoded twice; or all bins are one
    phase, every text is encoded once, and layers are recomputed to make room. Bins are as many as ``num_ranks`` can
    share evenly, and depend on nothing else about them: what a bin computes is then the same on any number of ranks.

    Args:
        groups: The texts (rows of ``lengths``) that one term of the loss needs, for instance a query, its positive and
            its negatives; texts may be shared.
        lengths: Tokens of each text.
        capacity: Tokens whose activations fit into the memory of a rank through all ``layers``.
        layers: Layers of the model.
        num_ranks: Ranks that share the work.
    """
    single = plan_single_phase(groups, lengths, capacity=capacity, layers=layers, num_ranks=num_ranks)
    separate = _plan_phase_per_bin(groups, lengths, capacity, num_ranks)
    tokens_separate = sum(lengths[row] for phase in separate for row in phase.rows)
    tokens_single = sum(lengths[row] for row in single.rows)
    cost_single = tokens_single * (1 + _RECOMPUTE_COST * single.recompute_layers / layers)
    return [single] if cost_single < tokens_separate else separate


def plan_single_phase(
    groups: Sequence[Sequence[int]], lengths: Sequence[int], *, capacity: int, layers: int, num_ranks: int = 1
) -> Phase:
    """Return one phase of all ``groups``, as a loss over all of them needs it (in-batch negatives).

    The arguments are those of ``plan_phases``.
    """
    texts = sorted({row for group in groups for row in group})
    balanced = balance_bins([lengths[row] for row in texts], capacity, num_ranks)
    bins = [[texts[position] for position in positions] for positions in balanced]
    busiest = max(
        sum(lengths[row] for position in share for row in bins[position])
        for share in split_across_ranks(bins, lengths, num_ranks)
    )
    kept = min(layers, layers * capacity // max(1, busiest))
    return Phase(bins, list(range(len(groups))), layers - kept)


def split_across_ranks(bins: Sequence[Sequence[int]], lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """Return for each rank the positions of the ``bins``, rows of texts, that it computes: about as many tokens."""
    return split_evenly([sum(lengths[row] for row in rows) for rows in bins], num_ranks)


def _plan_phase_per_bin(
    groups: Sequence[Sequence[int]], lengths: Sequence[int], capacity: int, num_ranks: int
) -> list[Phase]:
    """Return phases of one bin of at most ``capacity`` tokens; groups that share texts share a bin where that helps.

    A bin exceeds ``capacity`` only when a single group does.
    """
    count = count_bins(sum(lengths[row] for row in {row for group in groups for row in group}), capacity, num_ranks)
    while True:
        bins, members = partition_groups(groups, lengths, count)
        if count >= len(groups) or max(sum(lengths[row] for row in rows) for rows in bins) <= capacity:
            return [Phase([sorted(rows)], placed, 0) for rows, placed in zip(bins, members, strict=True) if placed]
        count += num_ranks


def partition_groups(
    groups: Sequence[Sequence[int]], lengths: Sequence[int], count: int
) -> tuple[list[set[int]], list[list[int]]]:
    """Partition ``groups`` into ``count`` parts of about as many tokens; groups that share texts together, if it helps.

    Returns for each part the texts that it needs and the positions of its groups; ``lengths`` are tokens of texts. The
    result depends on nothing else.
    """
    bins: list[set[int]] = [set() for _ in range(count)]
    loads = [0] * count
    members: list[list[int]] = [[] for _ in range(count)]
    texts = [set(group) for group in groups]
    sizes = [sum(lengths[row] for row in rows) for rows in texts]
    for group in sorted(range(len(groups)), key=lambda group: -sizes[group]):
        rows = texts[group]
        loads_after = [
            load + sizes[group] - sum(lengths[row] for row in rows & bin_rows)
            for load, bin_rows in zip(loads, bins, strict=True)
        ]
        best = loads_after.index(min(loads_after))
        bins[best] |= rows
        loads[best] = loads_after[best]
        members[best].append(group)
    return bins, members
