"""Makes queries for passages without an LLM, by published heuristics, for trials.

- ``keywords``: the terms of the passage with the highest tf-idf weight, as typed into a search box.
- ``inverse_cloze``: one sentence of the passage is the query for it (Lee et al. 2019, arXiv 1906.00300).
- ``cropping``: a random span of the passage with some words deleted (independent cropping: Izacard et al. 2022,
  arXiv 2112.09118).
- ``mixed``: each query is made by one of the three at random.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence

from components.sdg.passages.chunking import split_sentences
from components.sdg.records import Chunk, QaPair
from components.sdg.settings.generation_settings import OfflineMethod

_TERM = re.compile(r"\w[\w.'-]*\w|\w")
_METHODS = ("keywords", "inverse_cloze", "cropping")
_DELETED_WORDS = 0.1  # share of a crop's words, as in the paper
_FEWEST_WORDS = 3


class OfflineGenerator:
    """Maker of queries from passages.

    Args:
        passages: All passages of the corpus, from which document frequencies are counted.
        method: How a query is made of a passage.
    """

    def __init__(self, passages: Sequence[str], *, method: OfflineMethod) -> None:
        self._method = method
        self._passages = len(passages)
        self._frequency = Counter(term for passage in passages for term in set(_split_terms(passage)))
        self._make_query: dict[str, Callable[[str, random.Random], str]] = {
            "keywords": self._choose_keywords,
            "inverse_cloze": _choose_sentence,
            "cropping": _crop_span,
        }

    def make_pairs(self, chunks: Sequence[Chunk], *, per_passage: int, random_: random.Random) -> list[QaPair]:
        """Return at most ``per_passage`` pairs for each of ``chunks``; none where the text is too short."""
        pairs = []
        for chunk in chunks:
            queries: set[str] = set()
            for _ in range(per_passage):
                method = random_.choice(_METHODS) if self._method == "mixed" else self._method
                query = self._make_query[method](chunk.text, random_)
                if len(query.split()) >= _FEWEST_WORDS and query not in queries:
                    queries.add(query)
                    pairs.append(self._make_pair(query, chunk, method))
        return pairs

    def _make_pair(self, query: str, chunk: Chunk, method: str) -> QaPair:
        return QaPair(
            question=query,
            answer=self._find_answer(query, chunk.text),
            question_complexity=1,
            query_type="contextual",
            reasoning_type="factual",
            segment_ids=[chunk.chunk_id],
            hop_count=1,
            hop_contexts=[],
            synthetic_method=method,
        )

    def _find_answer(self, query: str, passage: str) -> str:
        """Return the sentence of the passage that shares most weight with the query, other than the query itself."""
        query_terms = set(_split_terms(query))
        others = [sentence for sentence in split_sentences(passage) if sentence != query] or [passage]
        # fsum: a plain sum rounds by the order of the set, which differs from process to process.
        return max(
            others, key=lambda text: math.fsum(self._weight(term) for term in query_terms & set(_split_terms(text)))
        )

    def _choose_keywords(self, passage: str, random_: random.Random) -> str:
        counts = Counter(_split_terms(passage))
        best = sorted(counts, key=lambda term: (-counts[term] * self._weight(term), term))
        chosen = best[: random_.randint(_FEWEST_WORDS, 6)]
        random_.shuffle(chosen)
        return " ".join(chosen)

    def _weight(self, term: str) -> float:
        return math.log((1 + self._passages) / (1 + self._frequency[term]))


def _choose_sentence(passage: str, random_: random.Random) -> str:
    sentences = [sentence for sentence in split_sentences(passage) if len(sentence.split()) > _FEWEST_WORDS]
    return random_.choice(sentences) if sentences else ""


def _crop_span(passage: str, random_: random.Random) -> str:
    words = passage.split()
    length = random_.randint(min(5, len(words)), max(min(5, len(words)), len(words) // 2))
    start = random_.randint(0, len(words) - length)
    return " ".join(word for word in words[start : start + length] if random_.random() >= _DELETED_WORDS)


def _split_terms(text: str) -> list[str]:
    return [term for term in _TERM.findall(text.lower()) if len(term) > 1 and not term.isdigit()]
