"""Prometheus metrics of the service."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Histogram


@dataclass(frozen=True)
class Metrics:
    """Metrics of requests to /v1/embeddings, in a registry of their own."""

    requests: Counter
    seconds: Histogram
    tokens: Counter
    texts: Counter
    registry: CollectorRegistry

    @classmethod
    def register(cls) -> Metrics:
        """Create the metrics and register them, in the order in which they are listed."""
        registry = CollectorRegistry()
        return cls(
            Counter("nemotron_embed_requests", "Requests", ["status"], registry=registry),
            Histogram("nemotron_embed_request_seconds", "Time to answer /v1/embeddings", registry=registry),
            Counter("nemotron_embed_tokens", "Tokens embedded", ["input_type"], registry=registry),
            Counter("nemotron_embed_texts", "Texts embedded", ["input_type"], registry=registry),
            registry,
        )
