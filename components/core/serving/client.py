"""Client of an embedding endpoint that speaks NIM's API or vLLM's; it checks every answer."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np

from components.core.encoder.config import Kind
from components.core.errors import ActionNeeded, InputError, StageError, Transient
from components.core.retry import RETRY_STATUSES, RetryPolicy, TryAgain, parse_retry_after
from components.core.serving.api import APIS, ApiName, EmbedRequest, Encoding, Truncate

_log = logging.getLogger(__name__)


class EmbeddingClient:
    """Client of the embedding service at ``url`` that serves ``model``; use it as a context manager.

    The service puts its own prefixes before texts: this client sends them as they are. ``retries`` counts requests that
    had to be repeated, ``invalid`` those among them for a vector with NaN or infinity.

    Args:
        url: address of the service, without ``/v1``.
        model: name that the service answers to.
        timeout: seconds for one request.
        api_key: bearer token, sent with every request.
        attempts: how often a request is sent before the service counts as away.
        api: the API that the service speaks.
        invalid_retries: how often a text is sent again, by itself, whose vector holds NaN or infinity.
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
        self._api = APIS[api]
        self._policy = RetryPolicy(attempts, first_wait=0.25, longest_wait=30.0, jitter=0.0)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.Client(timeout=timeout, headers=headers, follow_redirects=False)

    def __enter__(self) -> EmbeddingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def is_ready(self) -> bool:
        """Return whether the service says that it can answer now. Raises InputError for a malformed URL."""
        try:
            return self._client.get(f"{self.url}{self._api.ready_path}").status_code == httpx.codes.OK
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise self._to_url_error(error) from None
        except httpx.HTTPError:
            return False

    def list_models(self) -> list[str]:
        """Return the names that the service answers to. Raises as ``embed`` does."""
        body = self._parse_json(self._send("GET", "/v1/models"))
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
        """Return the vectors of ``texts`` in their order.

        Args:
            texts: the texts, without prefixes.
            kind: whether they are queries or passages.
            batch_size: texts in one request.
            truncate: which end of a text that is too long the service cuts; NONE asks it to refuse the text.
            encoding_format: how vectors travel.
            dimension: what the length of a vector must be; None accepts any.
            shortened_to: length of shorter vectors to ask for, which some services ignore.

        Returns:
            float32 [len(texts), d].

        Raises:
            ActionNeeded: for refused credentials and for answers that are no vectors.
            InputError: for a refused request and a malformed URL.
            Transient: when the service stays unavailable.
        """
        chunks: list[np.ndarray] = []
        for start in range(0, len(texts), batch_size):
            batch = list(texts[start : start + batch_size])
            request = EmbedRequest(self.model, batch, kind, truncate, encoding_format, shortened_to)
            chunks.append(self._embed_batch(request, dimension))
        if not chunks:
            return np.empty((0, dimension or 0), dtype=np.float32)
        if len({vectors.shape[1] for vectors in chunks}) > 1:
            raise ActionNeeded(f"{self.url} answers with vectors of several lengths: it does not serve one model")
        return np.concatenate(chunks)

    def _embed_batch(self, request: EmbedRequest, dimension: int | None) -> np.ndarray:
        """Return finite vectors of one request, float32 [texts, d]."""
        vectors = self._request_vectors(request)
        for row in np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
            vectors[row] = self._repeat_invalid(replace(request, texts=[request.texts[row]]), vectors.shape[1])
        if dimension is not None and vectors.shape[1] != dimension:
            raise ActionNeeded(f"{self.url} answers with {vectors.shape[1]} dimensions, the model has {dimension}")
        return vectors

    def _repeat_invalid(self, request: EmbedRequest, dimension: int) -> np.ndarray:
        """Return a finite vector of the only text of ``request``, float32 [dimension]."""
        for _ in range(self._invalid_retries):
            self.retries, self.invalid = self.retries + 1, self.invalid + 1
            vector: np.ndarray = self._request_vectors(request)[0]
            if len(vector) != dimension:
                raise ActionNeeded(f"{self.url} answers with vectors of several lengths")
            if np.isfinite(vector).all():
                return vector
        raise ActionNeeded(f"{self.url} answers with vectors that hold NaN or infinity: the served model is broken")

    def _request_vectors(self, request: EmbedRequest) -> np.ndarray:
        response = self._send("POST", self._api.embed_path, self._api.build_body(request))
        return self._read_vectors(self._parse_json(response), request)

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """Return the answer to a request, which is repeated while the service is busy or away."""
        address = f"{self.url}{path}"
        retrying = self._policy.retrying(what=address, log=_log, on_retry=self._count_retry)
        try:
            return retrying(self._send_once, method, path, body)
        except TryAgain as problem:
            raise Transient(
                f"{address} did not answer {self._policy.attempts} times ({problem}): is the service up?"
            ) from None

    def _send_once(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        try:
            response = self._client.request(method, f"{self.url}{path}", json=body)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise self._to_url_error(error) from None
        except httpx.HTTPError as error:
            raise TryAgain(str(error) or type(error).__name__) from None
        if response.is_success:
            return response
        problem = f"{response.status_code} {_read_message(response)}"
        if response.status_code in RETRY_STATUSES:
            # A server that asks for no wait at all gets the policy's.
            asked = parse_retry_after(response.headers.get("retry-after", ""))
            raise TryAgain(problem, wait_seconds=asked or None)
        raise self._to_refusal(response.status_code, path, problem)

    def _count_retry(self) -> None:
        self.retries += 1

    def _to_url_error(self, error: Exception) -> InputError:
        return InputError(f"{self.url} is no URL ({error}): correct it")

    def _to_refusal(self, status: int, path: str, problem: str) -> StageError:
        if status in (401, 402, 403):
            return ActionNeeded(f"{self.url}{path} refuses access ({problem}): check the key and its rights")
        return InputError(f"{self.url}{path} refuses the request ({problem}): check the URL and the model's name")

    def _parse_json(self, response: httpx.Response) -> Any:
        try:
            return response.json()
        except ValueError:
            raise ActionNeeded(f"{self.url} does not answer with JSON: something else stands before it") from None

    def _read_vectors(self, answer: Any, request: EmbedRequest) -> np.ndarray:
        """Return the vectors of one answer, float32 [texts, d], once model, count, order and lengths are right."""
        count = len(request.texts)
        model = answer.get("model") if isinstance(answer, dict) else None
        if isinstance(model, str) and model != request.model:
            raise ActionNeeded(f"{self.url} answers as {model} when asked for {request.model}: another model is served")
        try:
            rows = self._api.read_rows(answer, request)
            order = [int(position) for position, _ in rows]
            values = [_decode_vector(embedding) for _, embedding in rows]
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


def _decode_vector(embedding: object) -> np.ndarray:
    """Return a vector that was sent as numbers or as base64 of little-endian float32."""
    if isinstance(embedding, str):
        return np.frombuffer(base64.b64decode(embedding, validate=True), dtype="<f4").astype(np.float32)
    return np.asarray(embedding, dtype=np.float32)


def _read_message(response: httpx.Response) -> str:
    """Return what the service says about its refusal, on one line."""
    try:
        body = response.json()
        error = body.get("error", body)
        text = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(str(text or "").split())[:200]
