"""Asks the LLM in its roles: each answer is checked against a schema, kept in the ledger, and counted."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from pydantic import BaseModel, ValidationError

from components.core.errors import StageError
from components.sdg.component import SdgConfig
from components.sdg.llm.budget import Budget, Tokens, estimate_completion_tokens, estimate_prompt_tokens
from components.sdg.llm.client import InvalidAnswer, LlmClient, NoUsableAnswer
from components.sdg.llm.ledger import Ledger, canonical, key_of
from components.sdg.llm.prompts import Messages
from components.sdg.records import Json
from components.sdg.settings.llm_settings import ChatRole, Role

Answer = TypeVar("Answer", bound=BaseModel)
_JSON = re.compile(r"\{.*\}", re.DOTALL)
_REASONING = re.compile(r"<think>.*?</think>", re.DOTALL)
_TEXT_BYTES_PER_TOKEN = 4


@dataclass
class AnswerCounts:
    """How many answers were used, and how many of them this run paid for."""

    answers: int = 0
    paid: int = 0


@dataclass(frozen=True)
class ChatReply:
    """A chat answer as the ledger keeps it.

    Attributes:
        text: What the LLM wrote.
        cut_off: Whether it reached the most tokens of an answer.
        usage: Tokens of prompt and answer, as far as the endpoint reports them.
        model: The model, as the endpoint names it.
        fingerprint: Version of the endpoint's system, as it reports it.
    """

    text: str
    cut_off: bool
    usage: Mapping[str, int]
    model: str
    fingerprint: str


@dataclass(frozen=True)
class _Request:
    """A request to an endpoint.

    Attributes:
        role: Whose endpoint and model it goes to.
        path: Path below the endpoint's URL.
        body: JSON to send.
        key: Key of the answer in the ledger.
        tokens: Tokens of prompt and answer, roughly.
        parse: Makes the JSON that the ledger keeps of the endpoint's JSON answer.
    """

    role: Role
    path: str
    body: str
    key: str
    tokens: Tokens
    parse: Callable[[Any], Json]


class LlmRoles:
    """The LLM in all roles of ``config``. Use it as an asynchronous context manager.

    Raises:
        InputError: An endpoint's URL is not safe, or its key is missing. Nothing has been sent by then.
    """

    def __init__(self, config: SdgConfig, ledger: Ledger, budget: Budget) -> None:
        self._config, self._ledger, self._budget = config, ledger, budget
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._clients: dict[str, LlmClient] = {}
        for role in config.models:
            name, provider = config.get_provider(role)
            if name not in self._clients:
                self._clients[name] = LlmClient(name, provider, config, budget.counts)
        self.stopped: StageError | None = None

    async def __aenter__(self) -> LlmRoles:
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients.values():
            await client.close()

    def stop(self, reason: StageError) -> None:
        """Send nothing more; requests under way still come in and are kept."""
        if self.stopped is None:
            self.stopped = reason
            for client in self._clients.values():
                client.stopped = reason

    async def ask(self, role: ChatRole, messages: Messages, schema: type[Answer], counts: AnswerCounts) -> Answer:
        """Return the answer of ``role`` as ``schema``; a wrong one is asked again with what is wrong about it.

        Args:
            role: Who is asked.
            messages: The prompt.
            schema: What the answer must match.
            counts: Gets the number of answers that this took.

        Raises:
            NoUsableAnswer: No try yields one.
            StageError: What ``LlmClient.post`` raises.
        """
        conversation, problem, cuts = list(messages), "", 0
        max_tokens = self._config.parameters[role].max_tokens
        for attempt in range(self._config.max_attempts):
            reply = await self._chat(role, conversation, schema, attempt, max_tokens, counts)
            if reply.cut_off:
                problem, cuts = "it was cut off: be brief", cuts + 1
                if cuts == 2:
                    break
                if max_tokens is not None:
                    max_tokens *= 2
            else:
                try:
                    return schema.model_validate(_find_object(reply.text))
                except (ValueError, ValidationError, RecursionError) as error:
                    problem = _shorten(error)
            again = f"That answer cannot be used: {problem}. Send the whole JSON object again."
            # A broken end of an answer teaches nothing and costs its tokens again.
            wrong_answer = [] if reply.cut_off else [{"role": "assistant", "content": reply.text}]
            conversation = [*messages, *wrong_answer, {"role": "user", "content": again}]
        raise NoUsableAnswer(
            f"{self._config.models[role]} gave no usable answer in {attempt + 1} tries (last: {problem})"
        )

    async def compute_similarities(self, texts: list[str], counts: AnswerCounts) -> np.ndarray:
        """Return the cosines of ``texts`` with each other, by the model that finds duplicates.

        Args:
            texts: n questions.
            counts: Gets the number of answers that this took.

        Returns:
            float32 of shape [n, n], with four decimals.
        """
        body = {"model": self._config.embed_model, "input": texts, "input_type": "query", "truncate": "END"}

        def parse(answer: Any) -> Json:
            return {"cosines": _parse_cosines(answer, len(texts)), "usage": _parse_usage(answer)}

        tokens = Tokens(sum(len(text.encode()) for text in texts) // _TEXT_BYTES_PER_TOKEN)
        path, content = "/embeddings", canonical(body)
        request = _Request("embed", path, content, key_of(path=canonical(path), body=content), tokens, parse)
        return np.asarray((await self._answer(request, counts))["cosines"], dtype=np.float32)

    async def _chat(
        self,
        role: ChatRole,
        messages: Messages,
        schema: type[BaseModel],
        attempt: int,
        max_tokens: int | None,
        counts: AnswerCounts,
    ) -> ChatReply:
        parameters = self._config.parameters[role]
        body: Json = {
            "model": self._config.models[role],
            "messages": messages,
            "temperature": parameters.temperature,
            "top_p": parameters.top_p,
        }
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        path, content = "/chat/completions", canonical(body)
        # The number of the try is part of the key: a second try must not find the first one's answer.
        key = key_of(path=canonical(path), body=content, schema=_hash_schema(schema), attempt=str(attempt))
        tokens = Tokens(estimate_prompt_tokens(messages), estimate_completion_tokens(role, self._config))
        request = _Request(role, path, content, key, tokens, lambda answer: vars(_parse_reply(answer)))
        return ChatReply(**await self._answer(request, counts))

    async def _answer(self, request: _Request, counts: AnswerCounts) -> Json:
        """Return the ledger's answer, or one that is paid for now; it counts when the ledger has it."""
        # Two documents may ask the same at the same time.
        lock = self._locks.setdefault(request.key, asyncio.Lock())
        async with lock:
            answer: Json | None = self._ledger.get(request.key)
            if answer is None:
                answer = await self._pay(request)
                counts.paid += 1
        self._budget.count_answer(self._config.models[request.role], _to_tokens(answer["usage"]))
        counts.answers += 1
        return answer

    async def _pay(self, request: _Request) -> Json:
        if self.stopped is not None:
            raise self.stopped
        model = self._config.models[request.role]
        timeout = self._config.parameters[request.role].request_timeout or self._config.request_timeout

        def parse_and_count(answer: Any) -> Json:
            try:
                return request.parse(answer)
            except (InvalidAnswer, NoUsableAnswer):
                self._budget.count_waste(model, _to_tokens(_parse_usage(answer)))
                raise

        with self._budget.reserve(model, request.tokens):
            client = self._clients[self._config.get_provider(request.role)[0]]
            answer = await client.post(request.path, request.body, model=model, timeout=timeout, read=parse_and_count)
            await self._ledger.put(request.key, answer)
        return answer


@cache
def _hash_schema(model: type[BaseModel]) -> str:
    """Return a hash of the model's schema, as JSON: it is the same for every request."""
    return canonical(key_of(schema=canonical(model.model_json_schema())))


def _parse_reply(answer: Any) -> ChatReply:
    """Raise InvalidAnswer for an answer without text, NoUsableAnswer when the model will not answer."""
    try:
        choice = answer["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        refusal = choice["message"].get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise InvalidAnswer("an answer without choices") from None
    if finish == "content_filter" or refusal:
        raise NoUsableAnswer("the endpoint's content filter or the model refuses to answer")
    cut_off = finish == "length"
    if not isinstance(text, str) or (not text.strip() and not cut_off):
        raise InvalidAnswer("an empty answer")
    return ChatReply(
        text, cut_off, _parse_usage(answer), str(answer.get("model", "")), str(answer.get("system_fingerprint") or "")
    )


def _parse_usage(answer: Any) -> dict[str, int]:
    usage = answer.get("usage") if isinstance(answer, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    numbers = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
    return {name: value for name, value in numbers.items() if isinstance(value, int) and value >= 0}


def _to_tokens(usage: Mapping[str, int]) -> Tokens:
    return Tokens(usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0))


def _parse_cosines(answer: Any, count: int) -> list[list[float]]:
    """Round the cosines, so that a stored answer and a fresh one are the same."""
    try:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        vectors = np.asarray([row["embedding"] for row in rows], dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != count or not np.isfinite(vectors).all():
            raise ValueError("wrong number of vectors, or not numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidAnswer(f"an answer without vectors ({_shorten(error)})") from None
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return [[round(float(value), 4) for value in row] for row in vectors @ vectors.T]


def _find_object(text: str) -> Any:
    """Return the JSON object in an answer: bare, fenced, after reasoning, or with words around it."""
    match = _JSON.search(_REASONING.sub("", text))
    if not match:
        raise ValueError("there is no JSON object in it")
    return json.loads(match.group())


def _shorten(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return " ".join(str(error).split())[:200]
