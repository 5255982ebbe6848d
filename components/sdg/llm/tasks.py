"""What each task asks the LLM about one document, and the record that its answers make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from components.sdg.component import SdgConfig
from components.sdg.llm.budget import join_text, select_cited_chunks
from components.sdg.llm.client import NoUsableAnswer
from components.sdg.llm.prompts import (
    AnsweredQuestions,
    DocumentArtifacts,
    Evaluations,
    Pairs,
    ask_for_answers,
    ask_for_artifacts,
    ask_for_pairs,
    ask_for_scores,
)
from components.sdg.llm.roles import AnswerCounts, LlmRoles
from components.sdg.passages.chunking import count_words, split_into_parts
from components.sdg.records import ArtifactItem, Chunk, PairScores, QaPair, QaRecord
from components.sdg.settings.reading_settings import Task


@dataclass(frozen=True)
class TaskOutcome:
    """A record with its pairs, and how many pairs were rejected, by reason."""

    record: QaRecord
    rejected: Counter[str]


@dataclass(frozen=True)
class _PartOutcome:
    """What the four steps made of a part of a document."""

    artifacts: Mapping[str, list[ArtifactItem]]
    candidates: list[QaPair]
    scored: list[tuple[QaPair, PairScores]]
    rejected: Counter[str]


async def generate_pairs(llm: LlmRoles, record: QaRecord, config: SdgConfig, counts: AnswerCounts) -> TaskOutcome:
    """Run all four steps, for a long document part by part."""
    parts = [
        await _generate_for_part(llm, record, part, config, counts)
        for part in split_into_parts(record.chunks, config.max_prompt_words)
    ]
    rejected: Counter[str] = Counter()
    by_question: dict[str, tuple[QaPair, PairScores]] = {}
    for part in parts:
        rejected += part.rejected
        for pair, scores in part.scored:
            if by_question.setdefault(pair.question.casefold(), (pair, scores))[0] is not pair:
                rejected["repeats a question"] += 1
    kinds = parts[0].artifacts
    changed = replace(
        record,
        artifacts={kind: [item for part in parts for item in part.artifacts[kind]] for kind in kinds},
        candidates=[pair for part in parts for pair in part.candidates],
        pairs=[pair for pair, _ in by_question.values()],
        scores=[scores for _, scores in by_question.values()],
        synthetic_method=f"llm:{config.qa_generation_model}",
    )
    return TaskOutcome(changed, rejected)


async def _generate_for_part(
    llm: LlmRoles, record: QaRecord, chunks: Sequence[Chunk], config: SdgConfig, counts: AnswerCounts
) -> _PartOutcome:
    artifacts = await _extract_artifacts(llm, join_text(record, chunks), config, counts)
    answer = await llm.ask("qa_generation", ask_for_pairs(artifacts, chunks, config), Pairs, counts)
    chunk_ids = {chunk.chunk_id for chunk in chunks}
    candidates = [QaPair.from_json(pair.model_dump()) for pair in answer.pairs]
    with_known_segments = [pair for pair in candidates if set(pair.segment_ids or ()) <= chunk_ids]
    usable = with_known_segments[: config.count_pairs(count_words(chunks))]
    if not usable:
        raise NoUsableAnswer("every pair names segments that the document does not have")
    distinct = await _drop_duplicates(llm, usable, config, counts)
    scored = await _score_pairs(llm, distinct, chunks, config, counts)
    rejected = Counter(
        {
            "names unknown segments": len(candidates) - len(with_known_segments),
            "more than were asked for": len(with_known_segments) - len(usable),
            "repeats a question": len(usable) - len(distinct),
            "not scored by the judge": len(distinct) - len(scored),
        }
    )
    return _PartOutcome(artifacts, candidates, scored, rejected)


async def answer_questions(llm: LlmRoles, record: QaRecord, config: SdgConfig, counts: AnswerCounts) -> TaskOutcome:
    """Answer the record's questions; a part of a long document gets those that no earlier part answers."""
    questions = record.candidates
    answered: dict[int, QaPair] = {}
    for chunks in split_into_parts(record.chunks, config.max_prompt_words):
        chunk_ids = {chunk.chunk_id for chunk in chunks}
        unanswered = [number for number in range(len(questions)) if number not in answered]
        if not unanswered:
            break
        messages = ask_for_answers([questions[number].question for number in unanswered], chunks, config)
        for answer in (await llm.ask("qa_generation", messages, AnsweredQuestions, counts)).answers:
            if 1 <= answer.question_id <= len(unanswered) and set(answer.segment_ids) <= chunk_ids:
                number = unanswered[answer.question_id - 1]
                answered[number] = replace(questions[number], answer=answer.answer, segment_ids=answer.segment_ids)
    if not answered:
        raise NoUsableAnswer("no question has an answer in the passages")
    rejected = Counter({"not answered by the passages": len(questions) - len(answered)})
    return TaskOutcome(replace(record, pairs=[pair for _, pair in sorted(answered.items())]), rejected)


async def judge_pairs(llm: LlmRoles, record: QaRecord, config: SdgConfig, counts: AnswerCounts) -> TaskOutcome:
    """Score the record's pairs."""
    chunks = select_cited_chunks(record, config.max_prompt_words)
    scored = await _score_pairs(llm, record.candidates, chunks, config, counts)
    rejected = Counter({"not scored by the judge": len(record.candidates) - len(scored)})
    return TaskOutcome(
        replace(record, pairs=[pair for pair, _ in scored], scores=[scores for _, scores in scored]), rejected
    )


async def deduplicate_pairs(llm: LlmRoles, record: QaRecord, config: SdgConfig, counts: AnswerCounts) -> TaskOutcome:
    """Keep the first of questions that are alike."""
    distinct = await _drop_duplicates(llm, record.candidates, config, counts)
    rejected = Counter({"repeats a question": len(record.candidates) - len(distinct)})
    return TaskOutcome(replace(record, pairs=distinct), rejected)


TASKS: dict[Task, Callable[[LlmRoles, QaRecord, SdgConfig, AnswerCounts], Awaitable[TaskOutcome]]] = {
    "generate": generate_pairs,
    "generate_from_chunks": generate_pairs,
    "answer": answer_questions,
    "judge": judge_pairs,
    "deduplicate": deduplicate_pairs,
}


async def _extract_artifacts(
    llm: LlmRoles, text: str, config: SdgConfig, counts: AnswerCounts
) -> dict[str, list[ArtifactItem]]:
    """Return what ``text`` is about, by kind."""
    answer = await llm.ask("artifact_extraction", ask_for_artifacts(text, config), DocumentArtifacts, counts)
    return {
        kind: [ArtifactItem(**item) for item in items[: config.max_artifacts_per_type]]
        for kind, items in answer.model_dump().items()
    }


async def _score_pairs(
    llm: LlmRoles, pairs: Sequence[QaPair], chunks: Sequence[Chunk], config: SdgConfig, counts: AnswerCounts
) -> list[tuple[QaPair, PairScores]]:
    """Return the pairs that the judge scored, with their scores."""
    judged = await llm.ask("quality_judge", ask_for_scores(pairs, chunks, config), Evaluations, counts)
    scores = {evaluation.pair_id: PairScores.from_json(evaluation.model_dump()) for evaluation in judged.evaluations}
    scored = [(pair, scores[number]) for number, pair in enumerate(pairs, 1) if number in scores]
    if not scored:
        raise NoUsableAnswer("the judge scored none of the pairs")
    return scored


async def _drop_duplicates(
    llm: LlmRoles, pairs: Sequence[QaPair], config: SdgConfig, counts: AnswerCounts
) -> list[QaPair]:
    """Return ``pairs`` without those whose question is as good as an earlier one's."""
    cosines: np.ndarray = await llm.compute_similarities([pair.question for pair in pairs], counts)
    kept: list[int] = []
    for number in range(len(pairs)):
        if not kept or float(cosines[number, kept].max()) <= config.similarity_threshold:
            kept.append(number)
    return [pairs[number] for number in kept]
