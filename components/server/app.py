"""The HTTP side: NIM's and OpenAI's embedding API."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from components import __version__
from components.server.batching import Batcher, Overloaded
from components.server.model import OnnxModel, TooLong

_log = logging.getLogger(__name__)
MAX_TEXTS = 2048  # OpenAI's limit
MAX_BODY_BYTES = 16 * 2**20
Text = Annotated[str, Field(min_length=1)]


class EmbeddingsRequest(BaseModel):
    """Body of POST /v1/embeddings; unknown fields are ignored, as OpenAI's clients expect."""

    model: str
    input: Text | Annotated[list[Text], Field(min_length=1, max_length=MAX_TEXTS)]
    input_type: Literal["query", "passage"] = "query"
    truncate: Literal["NONE", "START", "END"] = "NONE"
    encoding_format: Literal["float", "base64"] = "float"
    embedding_type: Literal["float"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


class ApiError(Exception):
    """An answer other than success, in OpenAI's form; ``retry_after`` tells clients when to ask again, in seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = None if retry_after is None else {"Retry-After": str(retry_after)}


def build_app(model: OnnxModel, name: str, *, max_texts: int = 64) -> FastAPI:
    """The service for ``model`` under the served ``name``."""
    registry = CollectorRegistry()
    requests = Counter("nemotron_embed_requests", "Requests", ["status"], registry=registry)
    seconds = Histogram("nemotron_embed_request_seconds", "Time to answer /v1/embeddings", registry=registry)
    tokens = Counter("nemotron_embed_tokens", "Tokens embedded", ["input_type"], registry=registry)
    texts = Counter("nemotron_embed_texts", "Texts embedded", ["input_type"], registry=registry)
    batcher = Batcher(
        model,
        registry,
        max_texts=max_texts,
        max_tokens=model.batch_tokens,
        max_queue=64 * max_texts,
        workers=model.batches_at_once,
    )

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(batcher.run())
        yield
        worker.cancel()

    app = FastAPI(title="Nemotron Embed", version=__version__, lifespan=lifespan, max_body_size=MAX_BODY_BYTES)
    app.add_exception_handler(ApiError, _answer_api_error)
    app.add_exception_handler(RequestValidationError, _answer_validation_error)
    app.add_exception_handler(StarletteHTTPException, _answer_http_exception)
    app.state.draining = False
    started = int(time.time())

    @app.middleware("http")
    async def watch(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        begun = time.perf_counter()
        response = await call_next(request)
        if request.url.path == "/v1/embeddings":
            requests.labels(response.status_code).inc()
            seconds.observe(time.perf_counter() - begun)
            _log.info("%s %d %.1f ms", request.url.path, response.status_code, 1e3 * (time.perf_counter() - begun))
        return response

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingsRequest) -> Response:
        _check(body, name, model.limits.dimension)
        given = [body.input] if isinstance(body.input, str) else body.input
        try:
            ids = await asyncio.to_thread(model.tokenize, given, body.input_type, body.truncate)
            vectors = await batcher.embed(ids)
        except TooLong as error:
            raise ApiError(400, str(error), param="input", code="context_length_exceeded") from None
        except Overloaded as error:
            raise ApiError(503, str(error), code="overloaded", retry_after=1) from None
        except Exception:
            _log.exception("the model failed")
            raise ApiError(500, "the model failed: the service's log says why") from None
        count = sum(map(len, ids))
        tokens.labels(body.input_type).inc(count)
        texts.labels(body.input_type).inc(len(given))
        vectors = _shortened(vectors, body.dimensions, normalize=model.encoder.l2_normalize)
        answer = {
            "object": "list",
            "data": [
                {"object": "embedding", "index": index, "embedding": _encode(vector, body.encoding_format)}
                for index, vector in enumerate(vectors)
            ],
            "model": name,
            "usage": {"prompt_tokens": count, "total_tokens": count},
        }
        return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        about = {"id": name, "object": "model", "created": started, "owned_by": "nemotron-embed", "root": model.digest}
        return {"object": "list", "data": [about]}

    @app.get("/v1/health/live")
    async def live() -> dict[str, str]:
        return {"object": "health.response", "message": "live"}

    @app.get("/v1/health/ready")
    async def ready(response: Response) -> dict[str, str]:
        if app.state.draining:
            response.status_code = 503
        return {"object": "health.response", "message": "draining" if app.state.draining else "ready"}

    @app.get("/v1/metadata")
    async def metadata() -> dict[str, Any]:
        return {
            "version": __version__,
            "modelInfo": [{"shortName": name, "modelUrl": model.encoder.base_model}],
            "model": name,
            "digest": model.digest,
            "dimension": model.limits.dimension,
            "query_max_length": model.limits.query,
            "passage_max_length": model.limits.passage,
            "precision": model.manifest.precision,
        }

    @app.get("/v1/version")
    async def version() -> dict[str, str]:
        return {"release": __version__, "api": "1"}

    @app.get("/v1/manifest")
    async def manifest() -> dict[str, Any]:
        return model.manifest.model_dump()

    @app.get("/v1/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return app


def _check(body: EmbeddingsRequest, name: str, dimension: int) -> None:
    if body.model != name:
        raise ApiError(404, f"there is no model '{body.model}', this service serves '{name}'",
                       param="model", code="model_not_found")  # fmt: skip
    if body.dimensions is not None and body.dimensions > dimension:
        raise ApiError(400, f"dimensions = {body.dimensions}: this model's vectors have {dimension} at most",
                       param="dimensions")  # fmt: skip


def _shortened(vectors: np.ndarray, dimensions: int | None, *, normalize: bool) -> np.ndarray:
    """The first ``dimensions`` values of each vector, of length 1 again, as a Matryoshka model is used."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    cut = np.ascontiguousarray(vectors[:, :dimensions])
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12) if normalize else cut


def _encode(vector: np.ndarray, how: str) -> np.ndarray | str:
    """orjson writes arrays as they lie in memory."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if how == "base64" else vector


async def _answer_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error(error.status, error.message, param=error.param, code=error.code, headers=error.headers)


async def _answer_http_exception(_: Request, error: Exception) -> Response:
    """Unknown paths and methods, and bodies that are too large."""
    assert isinstance(error, StarletteHTTPException)
    return _error(error.status_code, str(error.detail))


async def _answer_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    field = next((str(part) for part in first["loc"] if part != "body"), "")
    return _error(400, f"{field or 'body'}: {first['msg']}", param=field or None)


def _error(
    status: int,
    message: str,
    *,
    param: str | None = None,
    code: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    kind = "invalid_request_error" if status < 500 else "server_error"
    return JSONResponse({"error": {"message": message, "type": kind, "param": param, "code": code}}, status, headers)
