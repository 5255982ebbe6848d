"""The two HTTP APIs that embedding servers speak: NIM's, which is OpenAI's with two fields more, and Cohere's of vLLM.

vLLM's ``/v1/embeddings`` cannot be told a query from a passage; its ``/v2/embed`` can, and puts the checkpoint's own
prompts before texts. Sources: NVIDIA's API reference of the text embedding NIM 1.13 and 2.2; vLLM 0.24's
``CohereEmbedRequest`` and ``CohereEmbedResponse``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from components.core.encoder.config import Kind

Truncate = Literal["NONE", "START", "END"]
Encoding = Literal["float", "base64"]
ApiName = Literal["nim", "vllm"]


@dataclass(frozen=True)
class EmbedRequest:
    """Request for the vectors of ``texts`` of one ``kind``; ``dimensions``, unless None, asks for shorter vectors."""

    model: str
    texts: Sequence[str]
    kind: Kind
    truncate: Truncate
    encoding: Encoding
    dimensions: int | None = None


class NimApi:
    """API of NIM 1.x and 2.x and of this project's ONNX server, and OpenAI's as far as it goes."""

    ready_path = "/v1/health/ready"
    embed_path = "/v1/embeddings"

    def build_body(self, request: EmbedRequest) -> dict[str, Any]:
        """Return the request as JSON."""
        body: dict[str, Any] = {
            "model": request.model,
            "input": list(request.texts),
            "input_type": request.kind,
            "truncate": request.truncate,
            "encoding_format": request.encoding,
        }
        return body if request.dimensions is None else body | {"dimensions": request.dimensions}

    def read_rows(self, answer: Any, _: EmbedRequest) -> list[tuple[int, Any]]:
        """Return position and vector of each row. Raises KeyError or TypeError for an answer in another form."""
        return [(row["index"], row["embedding"]) for row in answer["data"]]


class VllmApi:
    """Cohere's API as vLLM speaks it. Its word for a passage is ``document``."""

    ready_path = "/health"
    embed_path = "/v2/embed"

    def build_body(self, request: EmbedRequest) -> dict[str, Any]:
        """Return the request as JSON."""
        body: dict[str, Any] = {
            "model": request.model,
            "texts": list(request.texts),
            "input_type": "query" if request.kind == "query" else "document",
            "truncate": request.truncate,
            "embedding_types": [request.encoding],
        }
        return body if request.dimensions is None else body | {"output_dimension": request.dimensions}

    def read_rows(self, answer: Any, request: EmbedRequest) -> list[tuple[int, Any]]:
        """Return position and vector of each row. Raises KeyError or TypeError for an answer in another form."""
        return list(enumerate(answer["embeddings"][request.encoding]))


APIS: dict[ApiName, NimApi | VllmApi] = {"nim": NimApi(), "vllm": VllmApi()}
