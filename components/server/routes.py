"""Paths of NIM's and OpenAI's embedding API and what answers them."""

from __future__ import annotations

import asyncio
import base64
import logging
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from fastapi import APIRouter, Depends, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field

from components import __version__
from components.server.api_errors import ApiError
from components.server.batching import Batcher, Overloaded
from components.server.model import OnnxModel, TextTooLong
from components.server.service_metrics import Metrics

_log = logging.getLogger(__name__)
MAX_TEXTS = 2048  # OpenAI's limit
Text = Annotated[str, Field(min_length=1)]
router = APIRouter()


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


@dataclass(frozen=True)
class EmbeddingService:
    """What the paths share: the model under its served ``name``, its batcher and the metrics."""

    model: OnnxModel
    name: str
    batcher: Batcher
    metrics: Metrics
    created: int = field(default_factory=lambda: int(time.time()))


async def get_service(request: Request) -> EmbeddingService:
    """Return the service of the application that answers ``request``."""
    service: EmbeddingService = request.app.state.service
    return service


CurrentService = Annotated[EmbeddingService, Depends(get_service)]


# Names of routes are part of the OpenAPI description that clients are generated from.
@router.post("/v1/embeddings", name="embeddings")
async def _create_embeddings(body: EmbeddingsRequest, service: CurrentService) -> Response:
    model = service.model
    _check_request(body, service.name, model.limits.dimension)
    texts = [body.input] if isinstance(body.input, str) else body.input
    try:
        ids = await asyncio.to_thread(model.tokenize, texts, body.input_type, body.truncate)
        vectors = await service.batcher.embed(ids)
    except TextTooLong as error:
        raise ApiError(400, str(error), param="input", code="context_length_exceeded") from None
    except Overloaded as error:
        raise ApiError(503, str(error), code="overloaded", retry_after=1) from None
    except Exception:
        _log.exception("the model failed")
        raise ApiError(500, "the model failed: the service's log says why") from None
    tokens = sum(map(len, ids))
    service.metrics.tokens.labels(body.input_type).inc(tokens)
    service.metrics.texts.labels(body.input_type).inc(len(texts))
    vectors = _shorten_vectors(vectors, body.dimensions, normalize=model.encoder.l2_normalize)
    answer = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _encode_vector(vector, body.encoding_format)}
            for index, vector in enumerate(vectors)
        ],
        "model": service.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return Response(orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY), media_type="application/json")


@router.get("/v1/models", name="models")
async def _list_models(service: CurrentService) -> dict[str, Any]:
    model = {
        "id": service.name,
        "object": "model",
        "created": service.created,
        "owned_by": "nemotron-embed",
        "root": service.model.digest,
    }
    return {"object": "list", "data": [model]}


@router.get("/v1/health/live", name="live")
async def _report_live() -> dict[str, str]:
    return {"object": "health.response", "message": "live"}


@router.get("/v1/health/ready", name="ready")
async def _report_ready(request: Request, response: Response) -> dict[str, str]:
    draining = request.app.state.draining
    if draining:
        response.status_code = 503
    return {"object": "health.response", "message": "draining" if draining else "ready"}


@router.get("/v1/metadata", name="metadata")
async def _describe_model(service: CurrentService) -> dict[str, Any]:
    model = service.model
    return {
        "version": __version__,
        "modelInfo": [{"shortName": service.name, "modelUrl": model.encoder.base_model}],
        "model": service.name,
        "digest": model.digest,
        "dimension": model.limits.dimension,
        "query_max_length": model.limits.query,
        "passage_max_length": model.limits.passage,
        "precision": model.manifest.precision,
    }


@router.get("/v1/version", name="version")
async def _report_version() -> dict[str, str]:
    return {"release": __version__, "api": "1"}


@router.get("/v1/manifest", name="manifest")
async def _get_manifest(service: CurrentService) -> dict[str, Any]:
    return service.model.manifest.model_dump()


@router.get("/v1/metrics", name="metrics")
async def _get_metrics(service: CurrentService) -> Response:
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _check_request(body: EmbeddingsRequest, name: str, dimension: int) -> None:
    if body.model != name:
        raise ApiError(
            404,
            f"there is no model '{body.model}', this service serves '{name}'",
            param="model",
            code="model_not_found",
        )
    if body.dimensions is not None and body.dimensions > dimension:
        raise ApiError(
            400, f"dimensions = {body.dimensions}: this model's vectors have {dimension} at most", param="dimensions"
        )


def _shorten_vectors(vectors: np.ndarray, dimensions: int | None, *, normalize: bool) -> np.ndarray:
    """Return the first ``dimensions`` values of each vector, of length 1 again, as a Matryoshka model is used."""
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    short = np.ascontiguousarray(vectors[:, :dimensions])
    return short / np.maximum(np.linalg.norm(short, axis=1, keepdims=True), 1e-12) if normalize else short


def _encode_vector(vector: np.ndarray, encoding: str) -> np.ndarray | str:
    """Return the vector as base64, or as it is: orjson writes arrays as they lie in memory."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode() if encoding == "base64" else vector
