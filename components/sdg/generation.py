"""Runs the recipe's four steps for each document: what it is about, pairs, duplicate questions, scores."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from components.core.errors import ActionNeeded, StageError, Transient
from components.core.progress import Progress
from components.sdg.component import SdgConfig
from components.sdg.llm.budget import Budget, Tokens, describe_estimate, estimate_cost
from components.sdg.llm.client import NoUsableAnswer
from components.sdg.llm.ledger import Ledger, open_ledger
from components.sdg.llm.roles import AnswerCounts, LlmRoles
from components.sdg.llm.tasks import TASKS
from components.sdg.records import QaRecord

_log = logging.getLogger(__name__)
# With no document done so far, so many failures in a row mean that the endpoint or the settings are wrong.
_FAILURES_WITHOUT_SUCCESS = 20


@dataclass(frozen=True)
class GenerationResult:
    """Records with their questions, and figures about them.

    Attributes:
        records: The records, in the order in which they were given.
        totals: Figures that depend on the documents, the settings and the answers only.
        metrics: The same figures, and those of this run.
        tokens: Tokens of the answers that the data is made of, by model.
        failures: Why documents have no pairs, by source_id.
    """

    records: Sequence[QaRecord]
    totals: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    tokens: dict[str, Tokens] = field(default_factory=dict)
    failures: dict[str, NoUsableAnswer] = field(default_factory=dict)


@dataclass
class _RunState:
    records: list[QaRecord]
    done: int = 0
    reused: int = 0
    failures: dict[str, NoUsableAnswer] = field(default_factory=dict)
    counts: AnswerCounts = field(default_factory=AnswerCounts)
    rejected: Counter[str] = field(default_factory=Counter)


def generate(records: Sequence[QaRecord], config: SdgConfig) -> GenerationResult:
    """Give ``records`` pairs and scores from the LLM.

    A document whose requests fail stays without pairs. What was paid for is in the ledger, whatever is raised.

    Raises:
        ActionNeeded: The endpoint refuses, a cap is reached, or fewer documents than ``min_success`` have pairs.
        Transient: Running again may help.
    """
    budget = Budget(config, config.models.values())
    ledger = open_ledger(config.answers_uri)
    _log.info("estimate: %s", describe_estimate(estimate_cost(records, config), config.prices))
    if not ledger.durable:
        _log.warning("ledger_uri is not set: a run that is killed pays for everything again")
    return asyncio.run(_generate_all(records, config, ledger, budget))


async def _generate_all(
    records: Sequence[QaRecord], config: SdgConfig, ledger: Ledger, budget: Budget
) -> GenerationResult:
    state = _RunState(list(records))
    async with LlmRoles(config, ledger, budget) as llm:
        with _stop_on_sigterm(llm), Progress("generating questions", total=len(records), unit="documents") as progress:
            waiting = iter(range(len(records)))

            async def work() -> None:
                for number in waiting:
                    if llm.stopped is not None:
                        return
                    await _generate_one(llm, number, config, state)
                    progress.add(1, requests=budget.counts["requests"], **budget.compute_metrics())

            async with asyncio.TaskGroup() as group:
                # More documents than requests in flight: some wait for the ledger while others ask.
                for _ in range(2 * config.max_parallel_requests_for_gen):
                    group.create_task(work())
        if llm.stopped is not None:
            raise _add_progress(llm.stopped, state, config)
        _log.info(
            "%d answers, %d of them paid for by this run in %d requests; %d of %d documents came from the ledger whole",
            state.counts.answers,
            state.counts.paid,
            budget.counts["requests"],
            state.reused,
            len(records),
        )
    _require_success(state, config)
    totals = {
        "answers": state.counts.answers,
        **budget.compute_metrics(),
        "rejected_pairs": dict(sorted(state.rejected.items())),
    }
    metrics = totals | {
        "requests": budget.counts["requests"],
        "wasted_tokens": budget.counts["wasted_tokens"],
        "paid_answers": state.counts.paid,
        "reused_documents": state.reused,
        "dropped_pairs": sum(state.rejected.values()),
    }
    return GenerationResult(state.records, totals, metrics, budget.tokens, state.failures)


async def _generate_one(llm: LlmRoles, number: int, config: SdgConfig, state: _RunState) -> None:
    """Generate for one document, and note in ``state`` what happened to it."""
    record, counts = state.records[number], AnswerCounts()
    try:
        outcome = await TASKS[config.task](llm, record, config, counts)
        state.records[number] = outcome.record
        state.rejected += outcome.rejected
        state.done += 1
        state.reused += not counts.paid
    except NoUsableAnswer as error:
        state.failures[record.source_id] = error
        _log.warning("no pairs for %s: %s", record.source_id, error)
        if not state.done and len(state.failures) >= _FAILURES_WITHOUT_SUCCESS:
            kind = Transient if error.transient else ActionNeeded
            llm.stop(kind(f"the first {len(state.failures)} documents all failed (last: {error})"))
    except StageError as error:
        llm.stop(error)
    finally:
        state.counts.answers += counts.answers
        state.counts.paid += counts.paid


def _require_success(state: _RunState, config: SdgConfig) -> None:
    if state.done >= config.min_success * len(state.records):
        return
    first, error = min(state.failures.items())
    transient = all(failure.transient for failure in state.failures.values())
    problem = f"fewer than min_success = {config.min_success:g} have pairs; first failure: {first}: {error}"
    raise _add_progress((Transient if transient else ActionNeeded)(problem), state, config)


def _add_progress(error: StageError, state: _RunState, config: SdgConfig) -> StageError:
    """Return the same error with what is done and what became of what was paid."""
    kept = "their answers are in ledger_uri" if config.ledger_uri else "their answers are lost, set ledger_uri"
    done = f"{state.done} of {len(state.records)} documents are done"
    return type(error)(f"{error}; {done}, {kept}; nothing was published")


@contextlib.contextmanager
def _stop_on_sigterm(llm: LlmRoles) -> Iterator[None]:
    """Take in the answers under way and stop when the pod is being evicted."""
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
