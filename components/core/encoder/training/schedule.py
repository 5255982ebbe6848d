"""How a batch is computed when the activations of all its texts do not fit at once."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from components.core.encoder.packed.packing import balanced, fewest, spread

# A layer computed again costs one forward pass more beside one forward and two for the backward pass.
_RECOMPUTE = 1 / 3


@dataclass(frozen=True)
class Phase:
    """Bins of texts whose activations are kept together, and the groups whose loss they suffice for.

    ``bins``: rows of texts, every text once; ``groups``: positions of groups. The first ``recompute_layers`` layers
    keep only their inputs.
    """

    bins: list[list[int]]
    groups: list[int]
    recompute_layers: int

    @property
    def rows(self) -> list[int]:
        """The texts of all bins, one bin after the other."""
        return list(itertools.chain.from_iterable(self.bins))


def schedule(
    groups: Sequence[Sequence[int]], lengths: Sequence[int], *, capacity: int, layers: int, num_ranks: int = 1
) -> list[Phase]:
    """Phases whose losses, summed, are the loss of the whole batch: exact, in whichever way is cheapest.

    ``groups``: the texts (rows of ``lengths``) that one term of the loss needs, for instance a query, its positive and
    its negatives; texts may be shared. ``lengths``: tokens of each text. ``capacity``: tokens whose activations fit in
    the memory of a rank through all ``layers``.

    Either every bin is a phase of its own and a text shared by groups of two bins is encoded twice; or all bins are one
    phase, every text is encoded once, and layers are recomputed to make room. Bins are as many as ``num_ranks`` can
    share evenly, and depend on nothing else about them: what a bin computes is then the same on any number of ranks.
    """
    whole = one_phase(groups, lengths, capacity=capacity, layers=layers, num_ranks=num_ranks)
    apart = _phase_per_bin(groups, lengths, capacity, num_ranks)
    tokens_apart = sum(lengths[row] for phase in apart for row in phase.rows)
    tokens_whole = sum(lengths[row] for row in whole.rows)
    cost_whole = tokens_whole * (1 + _RECOMPUTE * whole.recompute_layers / layers)
    return [whole] if cost_whole < tokens_apart else apart


def one_phase(
    groups: Sequence[Sequence[int]], lengths: Sequence[int], *, capacity: int, layers: int, num_ranks: int = 1
) -> Phase:
    """All ``groups`` at once, as a loss over all of them needs them (in-batch negatives); as for ``schedule``."""
    texts = sorted({row for group in groups for row in group})
    bins = [
        [texts[place] for place in places] for places in balanced([lengths[row] for row in texts], capacity, num_ranks)
    ]
    busiest = max(sum(lengths[row] for place in own for row in bins[place]) for own in shares(bins, lengths, num_ranks))
    kept = min(layers, layers * capacity // max(1, busiest))
    return Phase(bins, list(range(len(groups))), layers - kept)


def shares(parts: Sequence[Sequence[int]], lengths: Sequence[int], num_ranks: int) -> list[list[int]]:
    """For each rank the positions of the ``parts``, rows of texts, that it computes: about as many tokens."""
    return spread([sum(lengths[row] for row in rows) for rows in parts], num_ranks)


def _phase_per_bin(
    groups: Sequence[Sequence[int]], lengths: Sequence[int], capacity: int, num_ranks: int
) -> list[Phase]:
    """Groups in bins of at most ``capacity`` tokens, groups that share texts in the same one where that helps.

    A bin exceeds ``capacity`` only when a single group does.
    """
    count = fewest(sum(lengths[row] for row in {row for group in groups for row in group}), capacity, num_ranks)
    while True:
        bins, placed = place_groups(groups, lengths, count)
        if count >= len(groups) or max(sum(lengths[row] for row in rows) for rows in bins) <= capacity:
            return [Phase([sorted(rows)], members, 0) for rows, members in zip(bins, placed, strict=True) if members]
        count += num_ranks


def place_groups(
    groups: Sequence[Sequence[int]], lengths: Sequence[int], count: int
) -> tuple[list[set[int]], list[list[int]]]:
    """``groups`` in ``count`` parts of about as many tokens, those that share texts in the same one where that helps.

    Returns for each part the texts that it needs and the positions of its groups; ``lengths`` are tokens of texts. The
    result depends on nothing else.
    """
    bins: list[set[int]] = [set() for _ in range(count)]
    loads = [0] * count
    placed: list[list[int]] = [[] for _ in range(count)]
    texts = [set(group) for group in groups]
    sizes = [sum(lengths[row] for row in rows) for rows in texts]
    for group in sorted(range(len(groups)), key=lambda group: -sizes[group]):
        rows = texts[group]
        after = [
            load + sizes[group] - sum(lengths[row] for row in rows & held)
            for load, held in zip(loads, bins, strict=True)
        ]
        best = after.index(min(after))
        bins[best] |= rows
        loads[best] = after[best]
        placed[best].append(group)
    return bins, placed
