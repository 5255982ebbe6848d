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
from functools import cached_property

from components.sdg.passages.chunking import split_sentences
from components.sdg.records import Chunk, QaPair
from components.sdg.settings.generation_settings import OfflineMethod

_TERM = re.compile(r"\w[\w.'-]*\w|\w")
_METHODS = ("keywords", "inverse_cloze", "cropping")
_DELETED_WORDS = 0.1  # share of a crop's words, as in the paper
_FEWEST_WORDS = 3


class _Passage:
    """A passage, with what all of its queries need."""

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def sentences(self) -> list[str]:
        return split_sentences(self.text)

    @cached_property
    def terms_by_sentence(self) -> dict[str, set[str]]:
        return {sentence: set(_split_terms(sentence)) for sentence in self.sentences}

    @cached_property
    def term_counts(self) -> Counter[str]:
        return Counter(_split_terms(self.text))


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
        self._make_query: dict[str, Callable[[_Passage, random.Random], str]] = {
            "keywords": self._choose_keywords,
            "inverse_cloze": _choose_sentence,
            "cropping": _crop_span,
        }

    def make_pairs(self, chunks: Sequence[Chunk], *, per_passage: int, random_: random.Random) -> list[QaPair]:
        """Return at most ``per_passage`` pairs for each of ``chunks``; none where the text is too short."""
        pairs = []
        for chunk in chunks:
            passage = _Passage(chunk.text)
            queries: set[str] = set()
            for _ in range(per_passage):
                method = random_.choice(_METHODS) if self._method == "mixed" else self._method
                query = self._make_query[method](passage, random_)
                if len(query.split()) >= _FEWEST_WORDS and query not in queries:
                    queries.add(query)
                    pairs.append(self._make_pair(query, chunk, passage, method))
        return pairs

    def _make_pair(self, query: str, chunk: Chunk, passage: _Passage, method: str) -> QaPair:
        return QaPair(
            question=query,
            answer=self._find_answer(query, passage),
            question_complexity=1,
            query_type="contextual",
            reasoning_type="factual",
            segment_ids=[chunk.chunk_id],
            hop_count=1,
            hop_contexts=[],
            synthetic_method=method,
        )

    def _find_answer(self, query: str, passage: _Passage) -> str:
        """Return the sentence of the passage that shares most weight with the query, other than the query itself."""
        query_terms = set(_split_terms(query))
        terms = {sentence: terms for sentence, terms in passage.terms_by_sentence.items() if sentence != query}
        if not terms:
            return passage.text
        # fsum: a plain sum rounds by the order of the set, which differs from process to process.
        return max(terms, key=lambda sentence: math.fsum(map(self._weigh, query_terms & terms[sentence])))

    def _choose_keywords(self, passage: _Passage, random_: random.Random) -> str:
        counts = passage.term_counts
        best = sorted(counts, key=lambda term: (-counts[term] * self._weigh(term), term))
        chosen = best[: random_.randint(_FEWEST_WORDS, 6)]
        random_.shuffle(chosen)
        return " ".join(chosen)

    def _weigh(self, term: str) -> float:
        return math.log((1 + self._passages) / (1 + self._frequency[term]))


def _choose_sentence(passage: _Passage, random_: random.Random) -> str:
    sentences = [sentence for sentence in passage.sentences if len(sentence.split()) > _FEWEST_WORDS]
    return random_.choice(sentences) if sentences else ""


def _crop_span(passage: _Passage, random_: random.Random) -> str:
    words = passage.text.split()
    length = random_.randint(min(5, len(words)), max(min(5, len(words)), len(words) // 2))
    start = random_.randint(0, len(words) - length)
    return " ".join(word for word in words[start : start + length] if random_.random() >= _DELETED_WORDS)


def _split_terms(text: str) -> list[str]:
    return [term for term in _TERM.findall(text.lower()) if len(term) > 1 and not term.isdigit()]
