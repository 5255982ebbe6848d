"""What generation costs: an estimate before the first request, a running count, and a cap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from components.core.errors import ActionNeeded, InputError
from components.sdg.component import SdgConfig
from components.sdg.llm.prompts import (
    ARTIFACT_KINDS,
    Messages,
    ask_for_answers,
    ask_for_artifacts,
    ask_for_pairs,
    ask_for_scores,
)
from components.sdg.passages.chunking import count_words, split_into_parts
from components.sdg.records import ArtifactItem, Chunk, QaPair, QaRecord
from components.sdg.settings.budget_settings import BudgetSettings, Price
from components.sdg.settings.llm_settings import ChatRole, Role

# Rules of thumb, for estimates only; what counts is what the endpoint reports.
_BYTES_PER_TOKEN = 4
_TOKENS_PER_ITEM: dict[ChatRole, int] = {"artifact_extraction": 60, "qa_generation": 250, "quality_judge": 200}
_TOKENS_PER_QUESTION = 30
_EXAMPLE_ITEM = ArtifactItem("x" * 30, "x" * 90, "")
_EXAMPLE_PAIR = QaPair(question="x" * 120, answer="x" * 240, segment_ids=[1])


@dataclass(frozen=True)
class Tokens:
    """Tokens of prompts and of answers."""

    prompt: int = 0
    completion: int = 0

    @property
    def total(self) -> int:
        """Tokens of both kinds."""
        return self.prompt + self.completion

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)


@dataclass
class CostEstimate:
    """Number of requests, and their tokens by model."""

    requests: int = 0
    tokens: dict[str, Tokens] = field(default_factory=dict)


class Budget:
    """Count of the tokens and the cost of all answers that the data set is made of, with a cap.

    Answers from the ledger count, too: otherwise every restart of a failed run could spend the whole cap again.

    Args:
        settings: Caps and prices.
        models: Models that will be asked.

    Raises:
        InputError: ``max_cost`` is set and a model has no price.
    """

    def __init__(self, settings: BudgetSettings, models: Collection[str]) -> None:
        self._settings = settings
        self.tokens: dict[str, Tokens] = {}
        self.counts: Counter[str] = Counter()  # of this run: requests, wasted_tokens
        self._wasted: dict[str, Tokens] = {}
        self._reserved: dict[str, Tokens] = {}  # of requests in flight
        if settings.max_cost is not None:
            missing = sorted({*models} - settings.prices.keys())
            if missing:
                raise InputError(f"max_cost needs the price of {', '.join(missing)}: add it to prices")

    @property
    def cost(self) -> float | None:
        """Cost in the currency of ``prices``; None when a model that was used has no price."""
        return compute_cost(self.tokens, self._settings.prices)

    def count_answer(self, model: str, tokens: Tokens) -> None:
        """Add the tokens of an answer."""
        _add(self.tokens, model, tokens)

    def count_waste(self, model: str, tokens: Tokens) -> None:
        """Add the tokens of an answer that was paid for and cannot be used."""
        _add(self._wasted, model, tokens)
        self.counts["wasted_tokens"] += tokens.total

    @contextmanager
    def reserve(self, model: str, tokens: Tokens) -> Iterator[None]:
        """Set ``tokens`` aside while a request is under way.

        Raises:
            ActionNeeded: They would go beyond ``max_tokens_total`` or ``max_cost``.
        """
        _add(self._reserved, model, tokens)
        try:
            self._check_caps()
            yield
        finally:
            self._reserved[model] -= tokens

    def compute_metrics(self) -> dict[str, float]:
        """Return totals of the data set; equal for equal ledgers, however often the run was interrupted."""
        totals: dict[str, float] = {
            "prompt_tokens": sum(tokens.prompt for tokens in self.tokens.values()),
            "completion_tokens": sum(tokens.completion for tokens in self.tokens.values()),
        }
        return totals | ({} if self.cost is None else {"cost": round(self.cost, 6)})

    def _check_caps(self) -> None:
        with_reserved: dict[str, Tokens] = {}
        for model, tokens in (*self.tokens.items(), *self._wasted.items(), *self._reserved.items()):
            _add(with_reserved, model, tokens)
        total = sum(tokens.total for tokens in with_reserved.values())
        limit, max_cost = self._settings.max_tokens_total, self._settings.max_cost
        if limit is not None and total > limit:
            raise ActionNeeded(f"max_tokens_total = {limit:,} would be exceeded: raise it to go on")
        cost = compute_cost(with_reserved, self._settings.prices)
        if max_cost is not None and cost is not None and cost > max_cost:
            raise ActionNeeded(f"max_cost = {max_cost:g} would be exceeded: raise it to go on")


def _add(totals: dict[str, Tokens], model: str, tokens: Tokens) -> None:
    totals[model] = totals.get(model, Tokens()) + tokens


def estimate_cost(records: Sequence[QaRecord], config: SdgConfig) -> CostEstimate:
    """Return the requests and tokens for all of ``records`` when no answer has to be asked for twice."""
    estimate = CostEstimate()

    def add(role: Role, tokens: Tokens) -> None:
        estimate.requests += 1
        _add(estimate.tokens, config.models[role], tokens)

    for record in records:
        for role, messages, pairs in _list_chats(record, config):
            add(role, Tokens(estimate_prompt_tokens(messages), estimate_completion_tokens(role, config, pairs)))
        if config.task not in ("answer", "judge"):
            for part in split_into_parts(record.chunks, config.max_prompt_words):
                add("embed", Tokens(config.count_pairs(count_words(part)) * _TOKENS_PER_QUESTION))
    return estimate


def _list_chats(record: QaRecord, config: SdgConfig) -> Iterator[tuple[ChatRole, Messages, int]]:
    """Yield the chats about ``record`` and the pairs in their answers; examples stand for answers to come."""
    artifacts = {kind: [_EXAMPLE_ITEM] * config.max_artifacts_per_type for kind in ARTIFACT_KINDS}
    existing = record.candidates
    if config.task == "judge":
        messages = ask_for_scores(existing, select_cited_chunks(record, config.max_prompt_words), config)
        yield "quality_judge", messages, len(existing)
    elif config.task == "answer":
        for part in split_into_parts(record.chunks, config.max_prompt_words):
            yield "qa_generation", ask_for_answers([pair.question for pair in existing], part, config), len(existing)
    elif config.task != "deduplicate":
        for part in split_into_parts(record.chunks, config.max_prompt_words):
            pairs = config.count_pairs(count_words(part))
            yield "artifact_extraction", ask_for_artifacts(join_text(record, part), config), pairs
            yield "qa_generation", ask_for_pairs(artifacts, part, config), pairs
            yield "quality_judge", ask_for_scores([_EXAMPLE_PAIR] * pairs, part, config), pairs


def select_cited_chunks(record: QaRecord, max_words: int) -> Sequence[Chunk]:
    """Return the passages to judge existing pairs by: all, or those that the pairs name where all are too many."""
    if count_words(record.chunks) <= max_words:
        return record.chunks
    cited = {segment for pair in record.candidates for segment in pair.segment_ids or ()}
    return [chunk for chunk in record.chunks if chunk.chunk_id in cited]


def join_text(record: QaRecord, part: Sequence[Chunk]) -> str:
    """Return the text that ``part`` of the record's passages stands for; the whole one as it was written."""
    return record.text if len(part) == len(record.chunks) else "\n".join(chunk.text for chunk in part)


def describe_estimate(estimate: CostEstimate, prices: Mapping[str, Price]) -> str:
    """Return the estimate as one line of text."""
    text = f"about {estimate.requests:,} requests"
    for model, tokens in estimate.tokens.items():
        text += f"; {model}: {tokens.prompt:,} prompt and {tokens.completion:,} completion tokens"
    cost = compute_cost(estimate.tokens, prices)
    return text + (f"; cost {cost:,.2f} by prices" if cost is not None else "; no cost: prices are not given")


def compute_cost(tokens: Mapping[str, Tokens], prices: Mapping[str, Price]) -> float | None:
    """Return the cost of ``tokens`` by model, or None when a model has no price."""
    if not tokens or not tokens.keys() <= prices.keys():
        return None
    return sum(
        (used.prompt * prices[model].prompt + used.completion * prices[model].completion) / 1e6
        for model, used in tokens.items()
    )


def estimate_prompt_tokens(messages: Messages) -> int:
    """Return about how many tokens ``messages`` have."""
    return sum(len(message["content"].encode()) for message in messages) // _BYTES_PER_TOKEN


def estimate_completion_tokens(role: ChatRole, config: SdgConfig, pairs: int | None = None) -> int:
    """Return about how many tokens the answer of ``role`` has.

    Args:
        role: Who answers.
        config: How many items of each kind are asked for, and the most tokens of an answer.
        pairs: How many pairs the answer is about; None is as many as it may be.
    """
    items = config.count_pairs(config.max_prompt_words) if pairs is None else pairs
    if role == "artifact_extraction":
        items = len(ARTIFACT_KINDS) * config.max_artifacts_per_type
    expected = items * _TOKENS_PER_ITEM[role]
    limit = config.parameters[role].max_tokens
    return min(expected, limit) if limit else expected
