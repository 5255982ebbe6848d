"""Connected components: what is linked, directly or through others, has one label."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def label_components(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the label of each of the numbers 0 to ``count - 1``: the lowest number that it is connected to.

    Args:
        count: How many numbers there are.
        first: One end of each link, int64 [links].
        second: The other end of each link, int64 [links].

    Returns:
        Labels, int64 [count]. Earlier labels are kept when ``np.arange(count)`` and these labels are links as well.
    """
    links = coo_array((np.ones(len(first), dtype=bool), (first, second)), shape=(count, count))
    _, components = connected_components(links, directed=False)
    _, lowest = np.unique(components, return_index=True)
    labels: np.ndarray = lowest[components]
    return labels
