"""Records of ``qa_pairs.jsonl``: passages, question-answer pairs, their scores. Only this module knows their JSON.

Records that exist already may have more fields than sdg knows, or fields of other types than sdg writes. Such fields
are ``extra``: they are written as they were read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

Json = dict[str, Any]


def _is_integers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, int) for item in value)


def _is_type(*types: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, types)


_CHUNK_FIELDS: dict[str, Callable[[Any], bool]] = {
    "text": _is_type(str),
    "start": _is_type(int),
    "end": _is_type(int),
    "sentence_count": _is_type(int),
    "word_count": _is_type(int),
    "chunk_id": _is_type(int),
    "doc_chunk_index": _is_type(int),
    "doc_id": _is_type(str, int),
    "doc_path": _is_type(str),
}
_PAIR_FIELDS: dict[str, Callable[[Any], bool]] = {
    "question": _is_type(str),
    "answer": _is_type(str),
    "question_complexity": _is_type(int),
    "query_type": _is_type(str),
    "reasoning_type": _is_type(str),
    "question_style": _is_type(str),
    "segment_ids": _is_integers,
    "hop_count": _is_type(int),
    "hop_contexts": _is_type(list),
    "synthetic_method": _is_type(str),
}


@dataclass(frozen=True, slots=True)
class Chunk:
    """A passage of a document.

    Attributes:
        text: The passage, its white space folded.
        chunk_id: Number of the passage in its record; from 1 when sdg cut it.
        word_count: Number of words, separated by white space.
        start: Offset of its first word in the document, in words.
        end: Offset behind its last word.
        sentence_count: Number of its sentences.
        doc_chunk_index: Number of the passage in its document, from 1.
        doc_id: Document of a bundle that the passage belongs to.
        doc_path: Path of that document.
        extra: Other fields of a passage that existed already.
    """

    text: str
    chunk_id: int
    word_count: int
    start: int | None = None
    end: int | None = None
    sentence_count: int | None = None
    doc_chunk_index: int | None = None
    doc_id: str | int | None = None
    doc_path: str | None = None
    extra: Mapping[str, object] | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Chunk:
        """Return the passage that ``values`` describes; it must have text, chunk_id and word_count."""
        return cls(**_split_fields(values, _CHUNK_FIELDS))

    def to_json(self) -> Json:
        """Return the passage as JSON values."""
        return _join_fields(self, _CHUNK_FIELDS)


@dataclass(frozen=True, slots=True)
class QaPair:
    """A question, and what is known of its answer.

    Attributes:
        question: The question, or keywords, or the statement of a problem.
        answer: The answer in words.
        question_complexity: From 1 (easy) to 5 (needs thought).
        query_type: Kind of question, of ``query_counts``.
        reasoning_type: Kind of reasoning, of ``reasoning_counts``.
        question_style: Form of the question, of ``question_styles``.
        segment_ids: The chunk_id of each passage that holds the answer.
        hop_count: Number of places that the question connects.
        hop_contexts: These places, as the LLM describes them.
        synthetic_method: Heuristic that made the pair.
        extra: Other fields of a pair that existed already.
    """

    question: str
    answer: str | None = None
    question_complexity: int | None = None
    query_type: str | None = None
    reasoning_type: str | None = None
    question_style: str | None = None
    segment_ids: Sequence[int] | None = None
    hop_count: int | None = None
    hop_contexts: Sequence[Json] | None = None
    synthetic_method: str | None = None
    extra: Mapping[str, object] | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> QaPair:
        """Return the pair that ``values`` describes; it must have a question."""
        return cls(**_split_fields(values, _PAIR_FIELDS))

    def to_json(self) -> Json:
        """Return the pair as JSON values."""
        return _join_fields(self, _PAIR_FIELDS)


@dataclass(frozen=True, slots=True)
class CriterionScore:
    """The judge's score of one criterion, from 1 to 10."""

    score: int
    justification: str


@dataclass(frozen=True, slots=True)
class OverallScore:
    """The judge's verdict on a pair, from 1 to 10."""

    score: float
    assessment: str


@dataclass(frozen=True, slots=True)
class PairScores:
    """The judge's scores of one pair."""

    relevance: CriterionScore
    accuracy: CriterionScore
    context_support: CriterionScore
    clarity: CriterionScore
    overall: OverallScore
    improvements: str

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> PairScores:
        """Return the scores that ``values``, a checked answer of the judge, describes."""
        criteria = ("relevance", "accuracy", "context_support", "clarity")
        return cls(
            **{name: CriterionScore(**values[name]) for name in criteria},
            overall=OverallScore(**values["overall"]),
            improvements=values["improvements"],
        )

    def to_json(self) -> Json:
        """Return the scores as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ArtifactItem:
    """Something that a document is about."""

    text: str
    description: str
    importance: str


@dataclass(frozen=True, slots=True)
class QaRecord:
    """A document, or a bundle of documents, with its passages and questions: one line of ``qa_pairs.jsonl``.

    Attributes:
        source_id: Name of the document, or a digest of the names of the bundle's documents.
        file_name: Paths of its documents.
        text: The whole text.
        chunks: Its passages.
        source: Name of the corpus among several; empty when there is only one.
        bundle_id: The digest again; empty for a single document.
        bundle_members: Documents of the bundle.
        is_multi_doc: Whether it is a bundle.
        artifacts: What the document is about, by kind.
        candidates: Pairs before duplicates and pairs without scores are left out (``qa_generation``).
        pairs: Pairs that the data set is made of (``deduplicated_qa_pairs``).
        scores: Scores of ``pairs``, in their order; None when nobody judged them (``qa_evaluations``).
        synthetic_method: Who made the pairs.
        for_quality_claims: False for pairs that no claim of quality may rest on; None is not written.
    """

    source_id: str
    file_name: Sequence[str]
    text: str
    chunks: Sequence[Chunk]
    source: str = ""
    bundle_id: str = ""
    bundle_members: Sequence[str] = ()
    is_multi_doc: bool = False
    artifacts: Mapping[str, Sequence[ArtifactItem]] | None = None
    candidates: Sequence[QaPair] = ()
    pairs: Sequence[QaPair] = ()
    scores: Sequence[PairScores] | None = None
    synthetic_method: str | None = None
    for_quality_claims: bool | None = None

    def to_json(self) -> Json:
        """Return the record as the JSON values of a line of ``qa_pairs.jsonl``."""
        scores = None if self.scores is None else {"evaluations": [scores.to_json() for scores in self.scores]}
        artifacts = {kind: [asdict(item) for item in items] for kind, items in (self.artifacts or {}).items()}
        values: Json = {
            "file_name": self.file_name,
            "source_id": self.source_id,
            **({"source": self.source} if self.source else {}),
            "text": self.text,
            "chunks": [chunk.to_json() for chunk in self.chunks],
            "bundle_id": self.bundle_id,
            "bundle_members": self.bundle_members,
            "is_multi_doc": self.is_multi_doc,
            "document_artifacts": artifacts,
            "qa_generation": {"pairs": [pair.to_json() for pair in self.candidates]},
            "deduplicated_qa_pairs": [pair.to_json() for pair in self.pairs],
            "qa_evaluations": scores,
        }
        optional = {
            "synthetic_method": self.synthetic_method,
            "for_quality_claims": self.for_quality_claims,
        }
        return values | {name: value for name, value in optional.items() if value is not None}


def _split_fields(values: Mapping[str, Any], fields: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    """Return the values that have the type of their field, and all others under ``extra``."""
    typed = {name: value for name, value in values.items() if name in fields and fields[name](value)}
    extra = {name: value for name, value in values.items() if name not in typed}
    return typed | {"extra": extra or None}


def _join_fields(record: Chunk | QaPair, fields: Mapping[str, object]) -> Json:
    values: Json = dict(record.extra or {})
    for name in fields:
        if (value := getattr(record, name)) is not None:
            values[name] = value
    return values
