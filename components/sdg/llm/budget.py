"""What generation costs: an estimate before the first request, a running count, and a cap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

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
from components.sdg.passages.chunking import parts, words_of

# Rules of thumb, for estimates only; what counts is what the endpoint reports.
_BYTES_PER_TOKEN = 4
_TOKENS_PER_ITEM = {"artifact_extraction": 60, "qa_generation": 250, "quality_judge": 200}
_TOKENS_PER_QUESTION = 30


@dataclass
class Tokens:
    """Tokens of one model."""

    prompt: int = 0
    completion: int = 0


@dataclass
class Estimate:
    """Requests, and tokens by model."""

    requests: int = 0
    tokens: dict[str, Tokens] = field(default_factory=dict)


class Budget:
    """Counts tokens and cost of all answers that the data set is made of, and stops at the cap.

    Answers from the ledger count, too: otherwise every restart of a failed run could spend the whole cap again.
    Raises InputError when ``max_cost`` is set and a model has no price.
    """

    def __init__(self, config: SdgConfig) -> None:
        self._config = config
        self.tokens: dict[str, Tokens] = {}
        self.counts: Counter[str] = Counter()  # of this run: requests, wasted_tokens
        self._wasted: dict[str, Tokens] = {}
        self._reserved: Counter[str] = Counter()  # of requests in flight, by model and kind of token
        if config.max_cost is not None:
            missing = sorted({*config.models.values()} - config.prices.keys())
            if missing:
                raise InputError(f"max_cost needs the price of {', '.join(missing)}: add it to prices")

    @property
    def cost(self) -> float | None:
        """In the currency of ``prices``; None when a model that was used has no price."""
        return cost_of(self.tokens, self._config)

    def add(self, model: str, usage: dict[str, int]) -> None:
        """Count an answer."""
        _add(self.tokens, model, usage)

    def waste(self, model: str, usage: dict[str, int]) -> None:
        """Count an answer that was paid for and holds nothing."""
        _add(self._wasted, model, usage)
        self.counts["wasted_tokens"] += sum(usage.values())

    @contextmanager
    def request(self, model: str, prompt: int, completion: int) -> Iterator[None]:
        """Set ``prompt`` and ``completion`` tokens aside while a request is under way.

        Raises ActionNeeded when they would go beyond ``max_tokens_total`` or ``max_cost``.
        """
        self._reserved.update({(model, "prompt"): prompt, (model, "completion"): completion})
        try:
            self._check()
            yield
        finally:
            self._reserved.subtract({(model, "prompt"): prompt, (model, "completion"): completion})

    def metrics(self) -> dict[str, Any]:
        """Totals of the data set; equal for equal ledgers, however often the run was interrupted."""
        totals: dict[str, Any] = {
            "prompt_tokens": sum(tokens.prompt for tokens in self.tokens.values()),
            "completion_tokens": sum(tokens.completion for tokens in self.tokens.values()),
        }
        return totals | ({} if self.cost is None else {"cost": round(self.cost, 6)})

    def _check(self) -> None:
        with_reserved: dict[str, Tokens] = {}
        for model, tokens in (*self.tokens.items(), *self._wasted.items()):
            _add(with_reserved, model, {"prompt_tokens": tokens.prompt, "completion_tokens": tokens.completion})
        for (model, kind), count in self._reserved.items():
            tokens = with_reserved.setdefault(model, Tokens())
            setattr(tokens, kind, getattr(tokens, kind) + count)
        total = sum(tokens.prompt + tokens.completion for tokens in with_reserved.values())
        limit = self._config.max_tokens_total
        if limit is not None and total > limit:
            raise ActionNeeded(f"max_tokens_total = {limit:,} would be exceeded: raise it to go on")
        cost = cost_of(with_reserved, self._config)
        if self._config.max_cost is not None and cost is not None and cost > self._config.max_cost:
            raise ActionNeeded(f"max_cost = {self._config.max_cost:g} would be exceeded: raise it to go on")


def _add(tokens: dict[str, Tokens], model: str, usage: dict[str, int]) -> None:
    known = tokens.setdefault(model, Tokens())
    known.prompt += usage.get("prompt_tokens", 0)
    known.completion += usage.get("completion_tokens", 0)


def estimate(records: Sequence[dict[str, Any]], config: SdgConfig) -> Estimate:
    """Requests and tokens for all of ``records`` when no answer has to be asked for twice."""
    found = Estimate()

    def add(role: str, prompt: int, completion: int) -> None:
        tokens = found.tokens.setdefault(config.models[role], Tokens())
        found.requests += 1
        tokens.prompt += prompt
        tokens.completion += completion

    for record in records:
        for role, messages, pairs in _requests(record, config):
            add(role, prompt_tokens(messages), completion_tokens(role, config, pairs))
        if config.task not in ("answer", "judge"):
            for part in parts(record["chunks"], config.max_prompt_words):
                add("embed", config.count_pairs(words_of(part)) * _TOKENS_PER_QUESTION, 0)
    return found


def _requests(record: dict[str, Any], config: SdgConfig) -> Iterator[tuple[str, Messages, int]]:
    """The chats about ``record`` and the pairs in their answers, with made-up ones where a chat needs another's."""
    item = {"text": "x" * 30, "description": "x" * 90}
    artifacts = {kind: [item] * config.max_artifacts_per_type for kind in ARTIFACT_KINDS}
    pair = {"question": "x" * 120, "answer": "x" * 240, "segment_ids": [1]}
    existing = record["qa_generation"]["pairs"]
    if config.task == "judge":
        yield "quality_judge", ask_for_scores(existing, cited(record, config), config), len(existing)
    elif config.task == "answer":
        for part in parts(record["chunks"], config.max_prompt_words):
            yield "qa_generation", ask_for_answers([one["question"] for one in existing], part, config), len(existing)
    elif config.task != "deduplicate":
        for part in parts(record["chunks"], config.max_prompt_words):
            pairs = config.count_pairs(words_of(part))
            yield "artifact_extraction", ask_for_artifacts(text_of(record, part), config), pairs
            yield "qa_generation", ask_for_pairs(artifacts, part, config), pairs
            yield "quality_judge", ask_for_scores([pair] * pairs, part, config), pairs


def cited(record: dict[str, Any], config: SdgConfig) -> list[dict[str, Any]]:
    """The passages to judge existing pairs by: all, or those that the pairs name where all are too many."""
    if sum(one["word_count"] for one in record["chunks"]) <= config.max_prompt_words:
        return record["chunks"]
    named = {segment for pair in record["qa_generation"]["pairs"] for segment in pair["segment_ids"]}
    return [one for one in record["chunks"] if one["chunk_id"] in named]


def text_of(record: dict[str, Any], part: Sequence[dict[str, Any]]) -> str:
    """The text that ``part`` of the record's passages stands for; the whole one as it was written."""
    return record["text"] if len(part) == len(record["chunks"]) else "\n".join(one["text"] for one in part)


def describe(found: Estimate, config: SdgConfig) -> str:
    """The estimate as text of one line."""
    text = f"about {found.requests:,} requests"
    for model, tokens in found.tokens.items():
        text += f"; {model}: {tokens.prompt:,} prompt and {tokens.completion:,} completion tokens"
    cost = cost_of(found.tokens, config)
    return text + (f"; cost {cost:,.2f} by prices" if cost is not None else "; no cost: prices are not given")


def cost_of(tokens: dict[str, Tokens], config: SdgConfig) -> float | None:
    """The cost by ``prices``, or None when a model has none."""
    if not tokens or not tokens.keys() <= config.prices.keys():
        return None
    return sum(
        (used.prompt * config.prices[model].prompt + used.completion * config.prices[model].completion) / 1e6
        for model, used in tokens.items()
    )


def prompt_tokens(messages: Messages) -> int:
    """Tokens of ``messages``, roughly."""
    return sum(len(message["content"].encode()) for message in messages) // _BYTES_PER_TOKEN


def completion_tokens(role: str, config: SdgConfig, pairs: int | None = None) -> int:
    """Tokens of the answer of ``role``, roughly; as long as they get when nobody says about how many ``pairs``."""
    items = config.count_pairs(config.max_prompt_words) if pairs is None else pairs
    if role == "artifact_extraction":
        items = len(ARTIFACT_KINDS) * config.max_artifacts_per_type
    expected = items * _TOKENS_PER_ITEM[role]
    limit = config.parameters[role].max_tokens
    return min(expected, limit) if limit else expected
