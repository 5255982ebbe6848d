"""The LLM's roles: each answer is checked against a schema, kept in the ledger, and counted."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np
from pydantic import BaseModel, ValidationError

from components.core.errors import StageError
from components.sdg.component import SdgConfig
from components.sdg.llm.budget import Budget, completion_tokens, prompt_tokens
from components.sdg.llm.client import Endpoint, GivenUp, Unusable
from components.sdg.llm.ledger import Ledger, canonical, key_of
from components.sdg.llm.prompts import Messages

Answer = TypeVar("Answer", bound=BaseModel)
_JSON = re.compile(r"\{.*\}", re.DOTALL)
_REASONING = re.compile(r"<think>.*?</think>", re.DOTALL)


@dataclass(frozen=True)
class Reply:
    """What the ledger keeps of one chat answer."""

    text: str
    cut_off: bool
    usage: dict[str, int]
    model: str  # as the endpoint names it
    fingerprint: str


@dataclass(frozen=True)
class _Call:
    """A request, its key in the ledger, its prompt and completion tokens, roughly, and what to keep of the answer."""

    role: str
    path: str
    body: str
    key: str
    tokens: tuple[int, int]
    read: Callable[[Any], dict[str, Any]]


class Llm:
    """All roles of ``config``. Use it as an asynchronous context manager.

    ``bill``, wherever it is asked for, counts ``answers`` and those of them that were ``paid`` for now. Raises
    InputError for an unsafe URL or a missing key, before anything is sent.
    """

    def __init__(self, config: SdgConfig, ledger: Ledger, budget: Budget) -> None:
        self._config, self._ledger, self._budget = config, ledger, budget
        self._asking: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._endpoints: dict[str, Endpoint] = {}
        for role in config.models:
            name, provider = config.get_provider(role)
            if name not in self._endpoints:
                self._endpoints[name] = Endpoint(name, provider, config, budget.counts)
        self.stopped: StageError | None = None

    async def __aenter__(self) -> Llm:
        return self

    async def __aexit__(self, *_: object) -> None:
        for endpoint in self._endpoints.values():
            await endpoint.close()

    def stop(self, reason: StageError) -> None:
        """Send nothing more; requests under way still come in and are kept."""
        if self.stopped is None:
            self.stopped = reason
            for endpoint in self._endpoints.values():
                endpoint.stopped = reason

    async def ask(self, role: str, messages: Messages, schema: type[Answer], bill: Counter[str]) -> Answer:
        """The answer of ``role`` as ``schema``; a wrong one is asked again with what is wrong about it.

        Raises GivenUp when no try yields one, and what Endpoint.post raises.
        """
        conversation, problem, cuts = list(messages), "", 0
        max_tokens = self._config.parameters[role].max_tokens
        for attempt in range(self._config.max_attempts):
            reply = await self._reply(role, conversation, schema, attempt, max_tokens, bill)
            if reply.cut_off:
                problem, cuts = "it was cut off: be brief", cuts + 1
                if cuts == 2:
                    break
                if max_tokens is not None:
                    max_tokens *= 2
            else:
                try:
                    return schema.model_validate(_object(reply.text))
                except (ValueError, ValidationError, RecursionError) as error:
                    problem = _short(error)
            again = f"That answer cannot be used: {problem}. Send the whole JSON object again."
            # A broken end of an answer teaches nothing and costs its tokens again.
            said = [] if reply.cut_off else [{"role": "assistant", "content": reply.text}]
            conversation = [*messages, *said, {"role": "user", "content": again}]
        raise GivenUp(f"{self._config.models[role]} gave no usable answer in {attempt + 1} tries (last: {problem})")

    async def similarities(self, texts: list[str], bill: Counter[str]) -> np.ndarray:
        """Cosines of ``texts`` with each other by the model that finds duplicates: float32 [n, n], four decimals."""
        body = {"model": self._config.embed_model, "input": texts, "input_type": "query", "truncate": "END"}

        def read(answer: Any) -> dict[str, Any]:
            return {"cosines": _cosines(answer, len(texts)), "usage": _usage(answer)}

        sent = sum(len(text.encode()) for text in texts) // 4
        path, content = "/embeddings", canonical(body)
        call = _Call("embed", path, content, key_of(path=canonical(path), body=content), (sent, 0), read)
        return np.asarray((await self._answer(call, bill))["cosines"], dtype=np.float32)

    async def _reply(
        self,
        role: str,
        messages: Messages,
        schema: type[BaseModel],
        attempt: int,
        max_tokens: int | None,
        bill: Counter[str],
    ) -> Reply:
        own = self._config.parameters[role]
        body: dict[str, Any] = {
            "model": self._config.models[role],
            "messages": messages,
            "temperature": own.temperature,
            "top_p": own.top_p,
        }
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        path, content = "/chat/completions", canonical(body)
        # The number of the try is part of the key: a second try must not find the first one's answer.
        key = key_of(path=canonical(path), body=content, schema=_schema(schema), attempt=str(attempt))
        tokens = (prompt_tokens(messages), completion_tokens(role, self._config))
        call = _Call(role, path, content, key, tokens, lambda answer: vars(_read(answer)))
        return Reply(**await self._answer(call, bill))

    async def _answer(self, call: _Call, bill: Counter[str]) -> dict[str, Any]:
        """The ledger's answer, or one that is paid for now; it counts when the ledger has it."""
        # Two documents may ask the same at the same time.
        asking = self._asking.setdefault(call.key, asyncio.Lock())
        async with asking:
            kept = self._ledger.get(call.key)
            if kept is None:
                kept = await self._pay(call)
                bill["paid"] += 1
        self._budget.add(self._config.models[call.role], kept["usage"])
        bill["answers"] += 1
        return kept

    async def _pay(self, call: _Call) -> dict[str, Any]:
        if self.stopped is not None:
            raise self.stopped
        model = self._config.models[call.role]
        timeout = self._config.parameters[call.role].request_timeout or self._config.request_timeout

        def counted(answer: Any) -> dict[str, Any]:
            try:
                return call.read(answer)
            except (Unusable, GivenUp):
                self._budget.waste(model, _usage(answer))
                raise

        with self._budget.request(model, *call.tokens):
            endpoint = self._endpoints[self._config.get_provider(call.role)[0]]
            kept = await endpoint.post(call.path, call.body, model=model, timeout=timeout, read=counted)
            await self._ledger.put(call.key, kept)
        return kept


@cache
def _schema(model: type[BaseModel]) -> str:
    """A hash of the model's schema, as JSON: it is the same for every request."""
    return canonical(key_of(schema=canonical(model.model_json_schema())))


def _read(answer: Any) -> Reply:
    """Raises Unusable for an answer without text, GivenUp when the model will not answer."""
    try:
        choice = answer["choices"][0]
        text, finish = choice["message"].get("content"), choice.get("finish_reason")
        refusal = choice["message"].get("refusal")
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Unusable("an answer without choices") from None
    if finish == "content_filter" or refusal:
        raise GivenUp("the endpoint's content filter or the model refuses to answer")
    cut_off = finish == "length"
    if not isinstance(text, str) or (not text.strip() and not cut_off):
        raise Unusable("an empty answer")
    return Reply(
        text, cut_off, _usage(answer), str(answer.get("model", "")), str(answer.get("system_fingerprint") or "")
    )


def _usage(answer: Any) -> dict[str, int]:
    found = answer.get("usage") if isinstance(answer, dict) else None
    found = found if isinstance(found, dict) else {}
    numbers = {name: found.get(name) for name in ("prompt_tokens", "completion_tokens")}
    return {name: value for name, value in numbers.items() if isinstance(value, int) and value >= 0}


def _cosines(answer: Any, count: int) -> list[list[float]]:
    """Rounded, so that a stored answer and a fresh one are the same."""
    try:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        vectors = np.asarray([row["embedding"] for row in rows], dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != count or not np.isfinite(vectors).all():
            raise ValueError("wrong number of vectors, or not numbers")
    except (KeyError, TypeError, ValueError) as error:
        raise Unusable(f"an answer without vectors ({_short(error)})") from None
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return [[round(float(value), 4) for value in row] for row in vectors @ vectors.T]


def _object(text: str) -> Any:
    """The JSON object in an answer: bare, fenced, after reasoning, or with words around it."""
    found = _JSON.search(_REASONING.sub("", text))
    if not found:
        raise ValueError("there is no JSON object in it")
    return json.loads(found.group())


def _short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return " ".join(str(error).split())[:200]
