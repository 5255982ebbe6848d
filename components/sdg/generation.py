"""The recipe's four steps for each document: what it is about, pairs, duplicate questions, scores."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np

from components.core.errors import ActionNeeded, StageError
from components.core.progress import Progress
from components.sdg.component import SdgConfig
from components.sdg.llm import GivenUp, Llm
from components.sdg.prompts import (
    DocumentArtifacts,
    Evaluations,
    Pairs,
    ask_for_artifacts,
    ask_for_pairs,
    ask_for_scores,
)

_log = logging.getLogger(__name__)


def generate(records: list[dict[str, Any]], config: SdgConfig) -> dict[str, int]:
    """Fill ``records`` with pairs and scores from the LLM; return counts of requests, tokens and drops.

    A document whose requests fail stays without pairs. Raises ActionNeeded when the endpoint refuses, and when fewer
    documents than ``min_success`` have pairs.
    """
    return asyncio.run(_generate(records, config))


async def _generate(records: list[dict[str, Any]], config: SdgConfig) -> dict[str, int]:
    failures: list[str] = []
    dropped = 0
    async with Llm(config) as llm:
        with Progress("generating questions", total=len(records), unit="documents") as progress:

            async def one(record: dict[str, Any]) -> None:
                nonlocal dropped
                try:
                    count = await _document(llm, record, config)
                    dropped += count
                except GivenUp as error:
                    failures.append(f"{record['source_id']}: {error}")
                    _log.warning("no pairs for %s", failures[-1])
                progress.add(requests=llm.usage["requests"])

            # Not all documents at once: their requests would wait in line and their prompts fill the memory.
            waiting = iter(records)

            async def worker() -> None:
                for record in waiting:
                    await one(record)

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(config.max_parallel_requests_for_gen):
                        group.create_task(worker())
            except* StageError as errors:
                raise errors.exceptions[0] from None
        usage = dict(llm.usage)
    _require_success(records, failures, config)
    return {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, **usage, "dropped_pairs": dropped}


async def _document(llm: Llm, record: dict[str, Any], config: SdgConfig) -> int:
    """Fill one record; return how many pairs were dropped. The record changes only when all steps succeeded."""
    chunks = record["chunks"]
    about = await llm.ask(
        config.artifact_extraction_model, ask_for_artifacts(record["text"], config), DocumentArtifacts
    )
    artifacts = about.model_dump()
    answer = await llm.ask(config.qa_generation_model, ask_for_pairs(artifacts, chunks, config), Pairs)
    known = {chunk["chunk_id"] for chunk in chunks}
    pairs = [pair.model_dump() for pair in answer.pairs]
    usable = [pair for pair in pairs if set(pair["segment_ids"]) <= known]
    if not usable:
        raise GivenUp("every pair names segments that the document does not have")
    distinct = _distinct(usable, await llm.embed([pair["question"] for pair in usable]), config.similarity_threshold)
    judged = await llm.ask(config.quality_judge_model, ask_for_scores(distinct, chunks), Evaluations)
    scores = {evaluation.pair_id: evaluation for evaluation in judged.evaluations}
    scored = [(pair, scores[number]) for number, pair in enumerate(distinct, 1) if number in scores]
    if not scored:
        raise GivenUp("the judge scored none of the pairs")
    record["document_artifacts"] = artifacts
    record["qa_generation"] = {"pairs": pairs}
    record["deduplicated_qa_pairs"] = [pair for pair, _ in scored]
    record["qa_evaluations"] = {"evaluations": [score.model_dump(exclude={"pair_id"}) for _, score in scored]}
    record["synthetic_method"] = f"llm:{config.qa_generation_model}"
    return len(pairs) - len(scored)


def _distinct(pairs: list[dict[str, Any]], vectors: np.ndarray, threshold: float) -> list[dict[str, Any]]:
    """``pairs`` without those whose question is as good as an earlier one's."""
    kept: list[int] = []
    for number in range(len(pairs)):
        if not kept or float((vectors[kept] @ vectors[number]).max()) <= threshold:
            kept.append(number)
    return [pairs[number] for number in kept]


def _require_success(records: list[dict[str, Any]], failures: list[str], config: SdgConfig) -> None:
    done = sum(bool(record["deduplicated_qa_pairs"]) for record in records)
    if done < config.min_success * len(records):
        raise ActionNeeded(
            f"only {done} of {len(records)} documents have pairs, min_success is {config.min_success:g}; nothing was "
            f"published (first failure: {failures[0]})"
        )
