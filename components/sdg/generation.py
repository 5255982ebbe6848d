"""The recipe's four steps for each document: what it is about, pairs, duplicate questions, scores."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from components.core.errors import ActionNeeded, StageError, Transient
from components.core.progress import Progress
from components.sdg.component import SdgConfig
from components.sdg.llm.budget import Budget, Tokens, cited, describe, estimate, text_of
from components.sdg.llm.client import GivenUp
from components.sdg.llm.ledger import Ledger, open_ledger
from components.sdg.llm.prompts import (
    AnsweredQuestions,
    DocumentArtifacts,
    Evaluations,
    PairEvaluation,
    Pairs,
    ask_for_answers,
    ask_for_artifacts,
    ask_for_pairs,
    ask_for_scores,
)
from components.sdg.llm.roles import Llm
from components.sdg.passages.chunking import parts, words_of

_log = logging.getLogger(__name__)
# With no document done so far, so many failures in a row mean that the endpoint or the settings are wrong.
_FAILURES_WITHOUT_SUCCESS = 20


@dataclass
class Generated:
    """``totals`` depend on the documents, the settings and the answers only; ``metrics`` also on this run."""

    totals: dict[str, Any]
    metrics: dict[str, Any]
    tokens: dict[str, Tokens] = field(default_factory=dict)  # by model
    failures: dict[str, StageError] = field(default_factory=dict)  # by document


@dataclass
class _State:
    done: int = 0
    reused: int = 0
    failures: dict[str, GivenUp] = field(default_factory=dict)
    bill: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)


def generate(records: list[dict[str, Any]], config: SdgConfig) -> Generated:
    """Fill ``records`` with pairs and scores from the LLM.

    A document whose requests fail stays without pairs. Raises ActionNeeded when the endpoint refuses, a cap is
    reached, or fewer documents than ``min_success`` have pairs; Transient when running again may help. What was paid
    for is in the ledger by then.
    """
    budget = Budget(config)
    ledger = open_ledger(config.answers_uri)
    _log.info("estimate: %s", describe(estimate(records, config), config))
    if not ledger.durable:
        _log.warning("ledger_uri is not set: a run that is killed pays for everything again")
    return asyncio.run(_generate(records, config, ledger, budget))


async def _generate(records: list[dict[str, Any]], config: SdgConfig, ledger: Ledger, budget: Budget) -> Generated:
    state = _State()
    async with Llm(config, ledger, budget) as llm:
        with _stop_on_sigterm(llm), Progress("generating questions", total=len(records), unit="documents") as progress:
            waiting = iter(records)

            async def worker() -> None:
                for record in waiting:
                    if llm.stopped is not None:
                        return
                    await _one(llm, record, config, state)
                    progress.add(requests=budget.counts["requests"], **budget.metrics())

            async with asyncio.TaskGroup() as group:
                # More documents than requests in flight: some wait for the ledger while others ask.
                for _ in range(2 * config.max_parallel_requests_for_gen):
                    group.create_task(worker())
        if llm.stopped is not None:
            raise _with_progress(llm.stopped, state, len(records), config)
        _log.info(
            "%d answers, %d of them paid for by this run in %d requests; %d of %d documents came from the ledger whole",
            state.bill["answers"],
            state.bill["paid"],
            budget.counts["requests"],
            state.reused,
            len(records),
        )
    _require_success(records, state, config)
    totals = {
        "answers": state.bill["answers"],
        **budget.metrics(),
        "rejected_pairs": dict(sorted(state.rejected.items())),
    }
    run = {name: budget.counts[name] for name in ("requests", "wasted_tokens")}
    run |= {"paid_answers": state.bill["paid"], "reused_documents": state.reused}
    dropped = {"dropped_pairs": sum(state.rejected.values())}
    return Generated(totals, totals | run | dropped, budget.tokens, state.failures)


async def _one(llm: Llm, record: dict[str, Any], config: SdgConfig, state: _State) -> None:
    """One document, with what happened to it noted in ``state``."""
    bill: Counter[str] = Counter()
    try:
        rejected = await _TASKS[config.task](llm, record, config, bill)
        state.rejected += rejected
        state.done += 1
        state.reused += not bill["paid"]
    except GivenUp as error:
        state.failures[record["source_id"]] = error
        _log.warning("no pairs for %s: %s", record["source_id"], error)
        if not state.done and len(state.failures) >= _FAILURES_WITHOUT_SUCCESS:
            kind = Transient if error.transient else ActionNeeded
            llm.stop(kind(f"the first {len(state.failures)} documents all failed (last: {error})"))
    except StageError as error:
        llm.stop(error)
    finally:
        state.bill.update(bill)


async def _answer(llm: Llm, record: dict[str, Any], config: SdgConfig, bill: Counter[str]) -> Counter[str]:
    """Answer the record's questions; a part of a long document gets those that no earlier part answers."""
    pairs = record["qa_generation"]["pairs"]
    answers: dict[int, dict[str, Any]] = {}
    for chunks in parts(record["chunks"], config.max_prompt_words):
        known = {one["chunk_id"] for one in chunks}
        open_ = [number for number in range(len(pairs)) if number not in answers]
        if not open_:
            break
        ask = ask_for_answers([pairs[number]["question"] for number in open_], chunks, config)
        for one in (await llm.ask("qa_generation", ask, AnsweredQuestions, bill)).answers:
            if 1 <= one.question_id <= len(open_) and set(one.segment_ids) <= known:
                answers[open_[one.question_id - 1]] = one.model_dump(exclude={"question_id"})
    if not answers:
        raise GivenUp("no question has an answer in the passages")
    record["deduplicated_qa_pairs"] = [pairs[number] | answer for number, answer in sorted(answers.items())]
    return Counter({"not answered by the passages": len(pairs) - len(answers)})


async def _judge(llm: Llm, record: dict[str, Any], config: SdgConfig, bill: Counter[str]) -> Counter[str]:
    """Score the record's pairs."""
    pairs = record["qa_generation"]["pairs"]
    ask = ask_for_scores(pairs, cited(record, config), config)
    judged = await llm.ask("quality_judge", ask, Evaluations, bill)
    scores = {evaluation.pair_id: evaluation.model_dump(exclude={"pair_id"}) for evaluation in judged.evaluations}
    scored = [(pair, scores[number]) for number, pair in enumerate(pairs, 1) if number in scores]
    if not scored:
        raise GivenUp("the judge scored none of the pairs")
    record["deduplicated_qa_pairs"] = [pair for pair, _ in scored]
    record["qa_evaluations"] = {"evaluations": [score for _, score in scored]}
    return Counter({"not scored by the judge": len(pairs) - len(scored)})


async def _deduplicate(llm: Llm, record: dict[str, Any], config: SdgConfig, bill: Counter[str]) -> Counter[str]:
    """Keep the first of questions that are alike."""
    pairs = record["qa_generation"]["pairs"]
    cosines = await llm.similarities([pair["question"] for pair in pairs], bill)
    record["deduplicated_qa_pairs"] = _distinct(pairs, cosines, config.similarity_threshold)
    return Counter({"repeats a question": len(pairs) - len(record["deduplicated_qa_pairs"])})


async def _document(llm: Llm, record: dict[str, Any], config: SdgConfig, bill: Counter[str]) -> Counter[str]:
    """Fill one record; return how many pairs were rejected, by reason. It changes only when all steps succeeded."""
    made = [await _part(llm, record, part, config, bill) for part in parts(record["chunks"], config.max_prompt_words)]
    rejected: Counter[str] = Counter()
    scored: dict[str, tuple[dict[str, Any], PairEvaluation]] = {}
    for part in made:
        rejected += part.rejected
        for pair, score in part.scored:
            if scored.setdefault(pair["question"].casefold(), (pair, score))[0] is not pair:
                rejected["repeats a question"] += 1
    artifacts = {kind: [item for part in made for item in part.artifacts[kind]] for kind in made[0].artifacts}
    record["document_artifacts"] = artifacts
    record["qa_generation"] = {"pairs": [pair for part in made for pair in part.pairs]}
    record["deduplicated_qa_pairs"] = [pair for pair, _ in scored.values()]
    record["qa_evaluations"] = {"evaluations": [score.model_dump(exclude={"pair_id"}) for _, score in scored.values()]}
    record["synthetic_method"] = f"llm:{config.qa_generation_model}"
    return rejected


@dataclass
class _Part:
    """What the four steps made of a part of a document."""

    artifacts: dict[str, Any]
    pairs: list[dict[str, Any]]
    scored: list[tuple[dict[str, Any], PairEvaluation]]
    rejected: Counter[str]


async def _part(
    llm: Llm, record: dict[str, Any], chunks: list[dict[str, Any]], config: SdgConfig, bill: Counter[str]
) -> _Part:
    ask = ask_for_artifacts(text_of(record, chunks), config)
    found = (await llm.ask("artifact_extraction", ask, DocumentArtifacts, bill)).model_dump()
    artifacts = {kind: items[: config.max_artifacts_per_type] for kind, items in found.items()}
    answer = await llm.ask("qa_generation", ask_for_pairs(artifacts, chunks, config), Pairs, bill)
    known = {chunk["chunk_id"] for chunk in chunks}
    pairs = [pair.model_dump() for pair in answer.pairs]
    known_only = [pair for pair in pairs if set(pair["segment_ids"]) <= known]
    usable = known_only[: config.count_pairs(words_of(chunks))]
    if not usable:
        raise GivenUp("every pair names segments that the document does not have")
    cosines = await llm.similarities([pair["question"] for pair in usable], bill)
    distinct = _distinct(usable, cosines, config.similarity_threshold)
    judged = await llm.ask("quality_judge", ask_for_scores(distinct, chunks, config), Evaluations, bill)
    scores = {evaluation.pair_id: evaluation for evaluation in judged.evaluations}
    scored = [(pair, scores[number]) for number, pair in enumerate(distinct, 1) if number in scores]
    if not scored:
        raise GivenUp("the judge scored none of the pairs")
    rejected = Counter(
        {
            "names unknown segments": len(pairs) - len(known_only),
            "more than were asked for": len(known_only) - len(usable),
            "repeats a question": len(usable) - len(distinct),
            "not scored by the judge": len(distinct) - len(scored),
        }
    )
    return _Part(artifacts, pairs, scored, rejected)


_TASKS = {
    "generate": _document,
    "generate_from_chunks": _document,
    "answer": _answer,
    "judge": _judge,
    "deduplicate": _deduplicate,
}


def _distinct(pairs: list[dict[str, Any]], cosines: np.ndarray, threshold: float) -> list[dict[str, Any]]:
    """``pairs`` without those whose question is as good as an earlier one's."""
    kept: list[int] = []
    for number in range(len(pairs)):
        if not kept or float(cosines[number, kept].max()) <= threshold:
            kept.append(number)
    return [pairs[number] for number in kept]


def _require_success(records: list[dict[str, Any]], state: _State, config: SdgConfig) -> None:
    if state.done >= config.min_success * len(records):
        return
    first, error = min(state.failures.items())
    transient = all(failure.transient for failure in state.failures.values())
    failed = f"fewer than min_success = {config.min_success:g} have pairs; first failure: {first}: {error}"
    raise _with_progress((Transient if transient else ActionNeeded)(failed), state, len(records), config)


def _with_progress(error: StageError, state: _State, total: int, config: SdgConfig) -> StageError:
    """The same error with what is done and what became of what was paid."""
    kept = "their answers are in ledger_uri" if config.ledger_uri else "their answers are lost, set ledger_uri"
    return type(error)(f"{error}; {state.done} of {total} documents are done, {kept}; nothing was published")


@contextlib.contextmanager
def _stop_on_sigterm(llm: Llm) -> Iterator[None]:
    """A pod that is being evicted takes in the answers under way and stops."""
    loop = asyncio.get_running_loop()
    reason = Transient("stopped by SIGTERM: run again to go on")
    try:
        loop.add_signal_handler(signal.SIGTERM, llm.stop, reason)
    except (ValueError, RuntimeError):  # not the main thread
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGTERM)
