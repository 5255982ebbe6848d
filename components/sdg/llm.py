"""An OpenAI-compatible LLM: bounded requests in flight, retries, answers checked against a schema."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import os
import random
import re
from collections import Counter
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import numpy as np
from pydantic import BaseModel, ValidationError

from components.core.errors import ActionNeeded, InputError, StageError
from components.sdg.component import SdgConfig

_log = logging.getLogger(__name__)
Answer = TypeVar("Answer", bound=BaseModel)
_TRY_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
_NEEDS_A_PERSON = {401: "the key is refused", 402: "the quota is used up", 403: "access is refused",
                   404: "there is no such model or path"}  # fmt: skip
_LONGEST_WAIT_SECONDS = 60.0
_JSON = re.compile(r"\{.*\}", re.DOTALL)
_REASONING = re.compile(r"<think>.*?</think>", re.DOTALL)


class GivenUp(StageError):
    """One request has no usable answer after all tries; other documents go on."""


class Llm:
    """The endpoint of ``config``. Use it as an asynchronous context manager.

    ``usage`` counts requests and tokens. The key is read from the environment, sent in a header and nowhere else.
    Raises InputError for an unsafe URL or a missing key, before anything is sent.
    """

    def __init__(self, config: SdgConfig) -> None:
        self.usage: Counter[str] = Counter()
        self._config = config
        self._url = _checked(config.llm_base_url)
        key = os.environ.get(config.api_key_env)
        if not key and not _is_local(self._url):
            raise InputError(
                f"{config.api_key_env} is not set: export {config.api_key_env}=... (or sdg.generator=offline)"
            )
        self._free = asyncio.Semaphore(config.max_parallel_requests_for_gen)
        self._client = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=config.request_timeout,
            follow_redirects=False,
        )

    async def __aenter__(self) -> Llm:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def ask(self, model: str, messages: list[dict[str, str]], schema: type[Answer]) -> Answer:
        """The answer of ``model`` as ``schema``; a wrong one is asked again with what is wrong about it.

        Raises GivenUp when no try yields one, ActionNeeded when a person must act.
        """
        conversation = list(messages)
        problem = ""
        for _ in range(self._config.max_attempts):
            text = await self._complete(model, conversation)
            try:
                return schema.model_validate(_object(text))
            except (ValueError, ValidationError) as error:
                problem = _short(error)
            conversation = [
                *messages,
                {"role": "assistant", "content": text},
                {
                    "role": "user",
                    "content": f"That answer cannot be used: {problem}. Send the whole JSON object again.",
                },
            ]
        raise GivenUp(f"{model} gave no usable answer in {self._config.max_attempts} tries (last: {problem})")

    async def embed(self, texts: list[str]) -> np.ndarray:
        """Unit vectors of ``texts`` by the model that finds duplicates: float32 [len(texts), d]."""
        body = {"model": self._config.embed_model, "input": texts, "input_type": "query", "truncate": "END"}
        answer = await self._post("/embeddings", body)
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            vectors = np.asarray([row["embedding"] for row in rows], dtype=np.float32)
            if len(vectors) != len(texts) or not np.isfinite(vectors).all():
                raise ValueError("wrong number of vectors, or not numbers")
        except (KeyError, TypeError, ValueError) as error:
            raise GivenUp(f"{self._config.embed_model} answered without vectors ({_short(error)})") from None
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)

    async def _complete(self, model: str, messages: list[dict[str, str]]) -> str:
        body = {
            "model": model,
            "messages": messages,
            "temperature": self._config.temperature,
            "top_p": self._config.top_p,
        }
        answer = await self._post("/chat/completions", body)
        usage = answer.get("usage") if isinstance(answer, dict) else None
        if isinstance(usage, dict):
            self.usage["prompt_tokens"] += int(usage.get("prompt_tokens") or 0)
            self.usage["completion_tokens"] += int(usage.get("completion_tokens") or 0)
        try:
            return answer["choices"][0]["message"]["content"] or ""
        except (KeyError, IndexError, TypeError):
            return ""

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON answer to one request, tried again while the endpoint is busy or away."""
        problem, wait = "", 0.0
        for attempt in range(self._config.max_attempts):
            await asyncio.sleep(wait)
            wait = min(2.0**attempt * random.uniform(0.5, 1.0), _LONGEST_WAIT_SECONDS)
            try:
                async with self._free:
                    self.usage["requests"] += 1
                    async with asyncio.timeout(self._config.request_timeout):
                        response = await self._client.post(self._url + path, json=body)
            except (httpx.HTTPError, TimeoutError) as error:
                problem = type(error).__name__
                continue
            if response.is_success:
                try:
                    return response.json()
                except ValueError:
                    problem = "the answer is not JSON"
                    continue
            problem = f"HTTP {response.status_code}"
            if response.status_code in _NEEDS_A_PERSON:
                reason = _NEEDS_A_PERSON[response.status_code]
                raise ActionNeeded(
                    f"{self._url}{path} answers {response.status_code} for {body['model']} ({reason}): "
                    f"check {self._config.api_key_env}, the quota and the model's name"
                )
            if response.status_code not in _TRY_AGAIN:
                raise GivenUp(f"{self._url}{path} refuses the request ({problem})")
            wait = max(wait, min(_retry_after(response), _LONGEST_WAIT_SECONDS))
        raise GivenUp(f"{self._url}{path} did not answer {self._config.max_attempts} times (last: {problem})")


def _checked(url: str) -> str:
    """The URL without a trailing slash, when a key may be sent to it."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise InputError(f"llm_base_url = {url!r}: expected https://host/v1, without a user or a key in it")
    if parts.scheme == "http" and not _is_local(url) and not _is_in_cluster(parts.hostname):
        raise InputError(f"llm_base_url = {url!r} would send the key in the clear: use https")
    return url.rstrip("/")


def _is_local(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_in_cluster(host: str) -> bool:
    """Names that only resolve inside a Kubernetes cluster."""
    return "." not in host or host.endswith((".svc", ".svc.cluster.local"))


def _retry_after(response: httpx.Response) -> float:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return 0.0


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
