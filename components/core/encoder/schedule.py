"""How a batch is computed when the activations of all its texts do not fit at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from components.core.encoder.packing import balanced

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


def schedule(
    groups: Sequence[Sequence[int]], lengths: Sequence[int], *, capacity: int, layers: int, together: bool = False
) -> list[Phase]:
    """Phases whose losses, summed, are the loss of the whole batch: exact, in whichever way is cheapest.

    ``groups``: the texts (rows of ``lengths``) that one term of the loss needs, for instance a query, its positive and
    its negatives; texts may be shared. ``lengths``: tokens of each text. ``capacity``: tokens whose activations fit in
    memory through all ``layers``. ``together``: the loss needs all groups at once (in-batch negatives).

    Either every bin is a phase of its own and a text shared by groups of two bins is encoded twice; or all bins are one
    phase, every text is encoded once, and layers are recomputed to make room.
    """
    whole = _one_phase(groups, lengths, capacity, layers)
    if together:
        return [whole]
    apart = _phase_per_bin(groups, lengths, capacity)
    tokens_apart = sum(lengths[row] for phase in apart for rows in phase.bins for row in rows)
    tokens_whole = sum(lengths[row] for rows in whole.bins for row in rows)
    cost_whole = tokens_whole * (1 + _RECOMPUTE * whole.recompute_layers / layers)
    return [whole] if cost_whole < tokens_apart else apart


def _one_phase(groups: Sequence[Sequence[int]], lengths: Sequence[int], capacity: int, layers: int) -> Phase:
    texts = sorted({row for group in groups for row in group})
    bins = balanced([lengths[row] for row in texts], capacity)
    tokens = sum(lengths[row] for row in texts)
    kept = min(layers, layers * capacity // tokens)
    return Phase([[texts[place] for place in places] for places in bins], list(range(len(groups))), layers - kept)


def _phase_per_bin(groups: Sequence[Sequence[int]], lengths: Sequence[int], capacity: int) -> list[Phase]:
    """Groups in bins of at most ``capacity`` tokens, groups that share texts in the same one where that helps.

    A bin exceeds ``capacity`` only when a single group does.
    """
    tokens = sum(lengths[row] for row in {row for group in groups for row in group})
    count = max(1, -(-tokens // capacity))
    while True:
        bins, placed = place_groups(groups, lengths, count)
        if count >= len(groups) or max(sum(lengths[row] for row in rows) for rows in bins) <= capacity:
            return [Phase([sorted(rows)], members, 0) for rows, members in zip(bins, placed, strict=True) if members]
        count += 1


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
    for group in sorted(range(len(groups)), key=lambda group: -sum(lengths[row] for row in set(groups[group]))):
        texts = set(groups[group])
        after = [load + sum(lengths[row] for row in texts - rows) for load, rows in zip(loads, bins, strict=True)]
        best = after.index(min(after))
        bins[best] |= texts
        loads[best] = after[best]
        placed[best].append(group)
    return bins, placed
