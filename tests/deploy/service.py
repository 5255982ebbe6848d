"""A service that answers with the reference vectors themselves, and can be told to be wrong in one way.

It speaks NIM's API and vLLM's; what either is asked for in its own words, faults and tests see in NIM's.
"""

from __future__ import annotations

import base64
import json
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

from components.core.serving.bundle import Bundle

Answer = dict[str, Any]
Fault = Callable[["Service", dict[str, Any], np.ndarray], np.ndarray]


class Service:
    """``fault`` sees each request and the right vectors, and returns those to send."""

    def __init__(self, bundle: Bundle, fault: Fault | None = None, *, name: str = "embed") -> None:
        self.bundle, self.fault, self.name = bundle, fault, name
        self.requests = 0
        self.lock = threading.Lock()
        # Whether it gives shorter vectors when asked; else it ignores that.
        self.dimensions = True
        self.status: Callable[[int, dict[str, Any]], int] = lambda *_: 200
        rows = range(len(bundle.probes))
        self.tuned = {(bundle.probes[row].kind, bundle.probes[row].text): bundle.tuned[row] for row in rows}
        self.base = {(bundle.probes[row].kind, bundle.probes[row].text): bundle.base[row] for row in rows}

    def vector(self, kind: str, text: str, table: dict[tuple[str, str], np.ndarray] | None = None) -> np.ndarray:
        """Of a probe the known one; of anything else one that depends on what the model would see of it."""
        known = (self.tuned if table is None else table).get((kind, text))
        if known is not None:
            return known
        seen = " ".join(text.split()[: self.bundle.encoder.max_length(kind) - 2])
        prefixed = self.bundle.encoder.prefix(kind) + seen
        vector = np.random.default_rng(zlib.crc32(prefixed.encode())).normal(size=self.bundle.manifest.dimension)
        return (vector / np.linalg.norm(vector)).astype(np.float32)

    def answer(self, path: str, request: dict[str, Any]) -> tuple[int, Answer]:
        """What a POST of ``request`` to ``path`` gets."""
        if path == "/v1/embeddings":
            return self.embed(request)
        if path != "/v2/embed":
            return 404, {"error": {"message": "no such path"}}
        (encoding,) = request["embedding_types"]
        asked = {
            "input": request["texts"],
            "input_type": {"query": "query", "document": "passage"}[request["input_type"]],
            "truncate": request["truncate"],
            "encoding_format": encoding,
            "dimensions": request.get("output_dimension"),
        }
        status, content = self.embed(asked)
        rows = [row["embedding"] for row in content.get("data", [])]
        return status, {"embeddings": {encoding: rows}} if status == 200 else content

    def embed(self, request: dict[str, Any]) -> tuple[int, Answer]:
        with self.lock:
            self.requests += 1
        if (status := self.status(self.requests, request)) != 200:
            return status, {"error": {"message": "told to"}}
        kind, texts = request["input_type"], request["input"]
        limit = self.bundle.encoder.max_length(kind)
        if request["truncate"] == "NONE" and any(len(text.split()) > limit for text in texts):
            return 400, {"error": {"message": "too long"}}
        vectors = np.stack([self.vector(kind, text) for text in texts])
        if self.dimensions and request.get("dimensions"):
            vectors = vectors[:, : request["dimensions"]]
            vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = self.fault(self, request, vectors) if self.fault else vectors
        as_text = request["encoding_format"] == "base64"
        sent = [base64.b64encode(v.astype("<f4").tobytes()).decode() if as_text else v.tolist() for v in vectors]
        return 200, {"data": [{"index": place, "embedding": one} for place, one in enumerate(sent)]}


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """The URL of ``service`` on a free port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self.reply(200, {"data": [{"id": service.name}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(*service.answer(self.path, body))

        def reply(self, status: int, content: Answer) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
