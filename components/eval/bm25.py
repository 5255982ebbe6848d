"""BM25, the lexical reference that every dense figure stands beside."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import bm25s
import numpy as np

_WORD = r"(?u)\b\w+\b"
logging.getLogger("bm25s").setLevel(logging.ERROR)


def bm25_top_k(queries: Sequence[str], passages: Sequence[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` best passages of every query: scores float32 and positions int64, [len(queries), min(k, passages)].

    Lucene's variant with k1 = 1.5 and b = 0.75 (Lu 2024, arXiv:2407.03618), lower-cased words, neither stop words nor
    stemming, so that it is the same for every language. Passages without a word of the query score -inf.
    """
    k = min(k, len(passages))
    words = bm25s.tokenize(list(passages), token_pattern=_WORD, stopwords=[], return_ids=False, show_progress=False)
    asked = bm25s.tokenize(list(queries), token_pattern=_WORD, stopwords=[], return_ids=False, show_progress=False)
    if not any(words):
        shape = (len(queries), k)
        return np.full(shape, -np.inf, dtype=np.float32), np.zeros(shape, dtype=np.int64)
    index = bm25s.BM25()
    index.index(words, show_progress=False)
    positions, scores = index.retrieve(asked, k=k, show_progress=False)
    return np.where(scores > 0, scores, -np.inf).astype(np.float32), positions.astype(np.int64)
