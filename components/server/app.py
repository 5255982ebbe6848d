"""The service as an ASGI application: NIM's and OpenAI's embedding API for one model."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from fastapi import FastAPI, Request, Response
from starlette.middleware.base import BaseHTTPMiddleware

from components import __version__
from components.server.api_errors import add_error_handlers
from components.server.batching import Batcher
from components.server.model import OnnxModel
from components.server.routes import EmbeddingService, router
from components.server.service_metrics import Metrics

_log = logging.getLogger(__name__)
MAX_BODY_BYTES = 16 * 2**20


def build_app(model: OnnxModel, name: str, *, max_texts: int = 64) -> FastAPI:
    """Build the application that serves ``model`` under ``name``, with at most ``max_texts`` texts in a batch."""
    metrics = Metrics.register()
    batcher = Batcher(
        model,
        metrics.registry,
        max_texts=max_texts,
        max_tokens=model.batch_tokens,
        max_queue=64 * max_texts,
        workers=model.batches_at_once,
    )
    app = FastAPI(title="Nemotron Embed", version=__version__, lifespan=_run_batcher, max_body_size=MAX_BODY_BYTES)
    app.state.service = EmbeddingService(model, name, batcher, metrics)
    app.state.draining = False
    add_error_handlers(app)
    app.add_middleware(BaseHTTPMiddleware, dispatch=_observe_request)
    app.include_router(router)
    return app


@contextlib.asynccontextmanager
async def _run_batcher(app: FastAPI) -> AsyncIterator[None]:
    """Serve the queue of texts while the application runs."""
    worker = asyncio.create_task(app.state.service.batcher.run())
    yield
    worker.cancel()


async def _observe_request(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Count, time and log the requests for embeddings."""
    started = time.perf_counter()
    response = await call_next(request)
    if request.url.path == "/v1/embeddings":
        metrics: Metrics = request.app.state.service.metrics
        metrics.requests.labels(response.status_code).inc()
        metrics.seconds.observe(time.perf_counter() - started)
        _log.info("%s %d %.1f ms", request.url.path, response.status_code, 1e3 * (time.perf_counter() - started))
    return response
