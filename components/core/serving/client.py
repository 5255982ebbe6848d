"""Client of an embedding endpoint, of NIM's API or vLLM's; it believes no answer unchecked."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np

from components.core.encoder.config import Kind
from components.core.errors import ActionNeeded, InputError, StageError, Transient
from components.core.serving.api import APIS, ApiName, EmbedRequest, Encoding, Truncate

_log = logging.getLogger(__name__)
_TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT_SECONDS = 30.0


class EmbeddingClient:
    """An embedding service at ``url`` that answers to the name ``model``. Use it as a context manager.

    ``api`` is what it speaks. The service puts its own prefixes before texts: this client sends them as they are. A
    vector that holds NaN or infinity is asked for again, by itself, up to ``invalid_retries`` times. ``retries`` counts
    requests that had to be repeated, ``invalid`` those among them for such a vector.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        timeout: float = 60.0,
        api_key: str | None = None,
        attempts: int = 6,
        api: ApiName = "nim",
        invalid_retries: int = 0,
    ) -> None:
        self.url = url.rstrip("/")
        self.model = model
        self.retries = self.invalid = 0
        self._invalid_retries = invalid_retries
        self._attempts, self._api = attempts, APIS[api]
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(timeout=timeout, headers=headers, follow_redirects=False)

    def __enter__(self) -> EmbeddingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def is_ready(self) -> bool:
        """Whether the service says that it can answer now."""
        try:
            return self._client.get(f"{self.url}{self._api.ready_path}").status_code == httpx.codes.OK
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise self._no_url(error) from None
        except httpx.HTTPError:
            return False

    def _no_url(self, error: Exception) -> InputError:
        return InputError(f"{self.url} is no URL ({error}): correct it")

    def list_models(self) -> list[str]:
        """Names that the service answers to."""
        body = self._json(self._send("GET", "/v1/models"))
        try:
            return [str(model["id"]) for model in body["data"]]
        except (KeyError, TypeError):
            raise InputError(f"{self.url}/v1/models does not answer as OpenAI's API does: check the URL") from None

    def embed(
        self,
        texts: Sequence[str],
        kind: Kind,
        *,
        batch_size: int = 32,
        truncate: Truncate = "END",
        encoding_format: Encoding = "float",
        dimension: int | None = None,
        shortened_to: int | None = None,
    ) -> np.ndarray:
        """Vectors of ``texts``: float32 [len(texts), d], in their order.

        ``dimension``, when given, is what d must be; ``shortened_to`` asks for shorter vectors,
        which some services ignore.
        Raises ActionNeeded for refused credentials and for answers that are no vectors, InputError for a refused
        request, Transient when the service stays unavailable.
        """
        found: list[np.ndarray] = []
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            request = EmbedRequest(self.model, batch, kind, truncate, encoding_format, shortened_to)
            found.append(self._sound(request, dimension))
        if not found:
            return np.empty((0, dimension or 0), dtype=np.float32)
        if len({vectors.shape[1] for vectors in found}) > 1:
            raise ActionNeeded(f"{self.url} answers with vectors of several lengths: it does not serve one model")
        return np.concatenate(found)

    def _sound(self, request: EmbedRequest, dimension: int | None) -> np.ndarray:
        """The vectors of ``request``, finite; a broken one is asked for again by itself."""
        vectors = self._ask(request)
        for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)):
            for _ in range(self._invalid_retries):
                self.retries, self.invalid = self.retries + 1, self.invalid + 1
                alone = self._ask(replace(request, texts=[request.texts[row]]))
                if alone.shape[1] != vectors.shape[1]:
                    raise ActionNeeded(f"{self.url} answers with vectors of several lengths")
                vectors[row] = alone[0]
                if np.isfinite(vectors[row]).all():
                    break
            else:
                raise ActionNeeded(
                    f"{self.url} answers with vectors that hold NaN or infinity: the served model is broken"
                )
        if dimension is not None and vectors.shape[1] != dimension:
            raise ActionNeeded(f"{self.url} answers with {vectors.shape[1]} dimensions, the model has {dimension}")
        return vectors

    def _ask(self, request: EmbedRequest) -> np.ndarray:
        return self._vectors(
            self._json(self._send("POST", self._api.embed_path, self._api.build_body(request))), request
        )

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """The answer to one request, repeated while the service is busy or away."""
        problem = ""
        for attempt in range(self._attempts):
            wait = min(0.25 * 2**attempt, _LONGEST_WAIT_SECONDS)
            try:
                response = self._client.request(method, f"{self.url}{path}", json=body)
            except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
                raise self._no_url(error) from None
            except httpx.HTTPError as error:
                problem = str(error) or type(error).__name__
            else:
                if response.is_success:
                    return response
                problem = f"{response.status_code} {_message(response)}"
                if response.status_code not in _TRY_AGAIN:
                    raise self._refused(response.status_code, path, problem)
                wait = min(_retry_after(response) or wait, _LONGEST_WAIT_SECONDS)
            if attempt + 1 < self._attempts:
                self.retries += 1
                _log.info("%s%s: %s; again in %.1f s", self.url, path, problem, wait)
                time.sleep(wait)
        raise Transient(f"{self.url}{path} did not answer {self._attempts} times ({problem}): is the service up?")

    def _refused(self, status: int, path: str, problem: str) -> StageError:
        if status in (401, 402, 403):
            return ActionNeeded(f"{self.url}{path} refuses access ({problem}): check the key and its rights")
        return InputError(f"{self.url}{path} refuses the request ({problem}): check the URL and the model's name")

    def _json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError:
            raise ActionNeeded(f"{self.url} does not answer with JSON: something else stands before it") from None

    def _vectors(self, answer: Any, request: EmbedRequest) -> np.ndarray:
        """The vectors of one answer, checked: model, count, order, one length, none of zeros."""
        count = len(request.texts)
        said = answer.get("model") if isinstance(answer, dict) else None
        if isinstance(said, str) and said != request.model:
            raise ActionNeeded(f"{self.url} answers as {said} when asked for {request.model}: another model is served")
        try:
            rows = self._api.read_rows(answer, request)
            order = [int(position) for position, _ in rows]
            values = [_decode(embedding) for _, embedding in rows]
        except (KeyError, TypeError, ValueError):
            raise ActionNeeded(f"{self.url}{self._api.embed_path}: the answer has no vectors: check the URL") from None
        if sorted(order) != list(range(count)):
            raise ActionNeeded(f"{self.url} answered {count} texts with vectors for positions {sorted(order)[:5]}...")
        if len({len(value) for value in values}) > 1:
            raise ActionNeeded(f"{self.url} answers with vectors of several lengths")
        vectors = np.stack([values[position] for position in np.argsort(order)])
        if not np.abs(vectors).sum(axis=1).all():
            raise ActionNeeded(f"{self.url} answers with zero vectors: the served model is broken")
        return vectors


def _decode(embedding: Any) -> np.ndarray:
    """A vector sent as numbers or as base64 of little-endian float32."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4").astype(np.float32)
    return np.asarray(embedding, dtype=np.float32)


def _retry_after(response: httpx.Response) -> float | None:
    try:
        return max(0.0, float(response.headers["retry-after"]))
    except (KeyError, ValueError):
        return None


def _message(response: httpx.Response) -> str:
    """What the service says about its refusal, on one line."""
    try:
        body = response.json()
        error = body.get("error", body)
        text = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(str(text or "").split())[:200]
