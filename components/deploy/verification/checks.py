"""Checks of an endpoint's vectors of the probes, each of which tells something about the model behind it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.core.encoder.config import Kind
from components.core.errors import InputError, StageError
from components.core.serving.bundle import Bundle, Probe
from components.core.serving.client import EmbeddingClient
from components.core.serving.vector_limits import (
    NORM_TOLERANCE,
    ParityLimits,
    compare_vectors,
    compute_norm_error,
    compute_row_cosines,
)

BATCH = 8
_NEARER_SHARE = 0.95
# The trap of engines that are built for shorter texts than the model takes: 256 tokens is the recipe's own profile. A
# token is hardly ever more than a word.
_LONG_WORDS = 256
_NEIGHBOURS = 10


@dataclass(frozen=True)
class Check:
    """Result of one check. ``passed`` is None when it could not be decided; ``figures`` say why."""

    name: str
    passed: bool | None
    figures: dict[str, Any]
    limit: str

    def __str__(self) -> str:
        verdict = {True: "passed", False: "FAILED", None: "skipped"}[self.passed]
        return f"{verdict:<8} {self.name:<22} {self.format_figures()} ({self.limit})"

    def format_figures(self) -> str:
        """Return the figures on one line."""
        return ", ".join(f"{name} {value}" for name, value in self.figures.items())


@dataclass(frozen=True)
class ProbedEndpoint:
    """Endpoint with its vectors of all probes, float32 [probes, dimension], requested in batches of eight."""

    client: EmbeddingClient
    bundle: Bundle
    vectors: np.ndarray

    @property
    def limits(self) -> ParityLimits:
        """Limits of the precision that the endpoint serves in."""
        return self.bundle.manifest.limits


def run_check(name: str, limit: str, measure: Callable[[], tuple[bool, dict[str, Any]]]) -> Check:
    """Run a check that sends requests of its own; an endpoint that does not answer fails it."""
    try:
        return Check(name, *measure(), limit)
    except StageError as error:
        return Check(name, False, {"error": str(error)}, limit)


def check_readiness(client: EmbeddingClient) -> tuple[bool, dict[str, Any]]:
    """Check that the service calls itself ready."""
    ready = client.is_ready()
    return ready, {"ready": ready}


def check_model_name(client: EmbeddingClient) -> tuple[bool, dict[str, Any]]:
    """Check that /v1/models has the name that clients give."""
    names = client.list_models()
    return client.model in names, {"found": names[:5]}


def check_norm(endpoint: ProbedEndpoint) -> Check:
    """Check that vectors have length 1, so that dot products are cosines."""
    if not endpoint.bundle.manifest.l2_normalize:
        return Check("length 1", None, {"reason": "the model does not normalise"}, "")
    limit = NORM_TOLERANCE[endpoint.bundle.manifest.precision]
    error = compute_norm_error(endpoint.vectors)
    return Check("length 1", error <= limit, {"largest error": round(error, 7)}, f"<= {limit}")


def check_cosines(endpoint: ProbedEndpoint) -> Check:
    """Check that each vector is the checkpoint's, as far as the precision allows."""
    cosines = compare_vectors(endpoint.vectors, endpoint.bundle.tuned)
    return Check("cosine to fine-tuned", cosines.is_within(endpoint.limits), cosines.to_figures(), str(endpoint.limits))


def check_not_base(endpoint: ProbedEndpoint) -> Check:
    """Check against the base model, on the probes where it differs by more than the precision explains."""
    tuned, base = endpoint.bundle.tuned, endpoint.bundle.base
    differ = compute_row_cosines(tuned, base) < endpoint.limits.minimum
    limit = f"nearer on >= {_NEARER_SHARE:.0%} of the probes where they differ"
    if not differ.any():
        return Check("fine-tuned, not base", None, {"reason": "both give the same vectors for every probe"}, limit)
    nearer = compute_row_cosines(endpoint.vectors, tuned)[differ] > compute_row_cosines(endpoint.vectors, base)[differ]
    figures = {"differ": int(differ.sum()), "nearer": int(nearer.sum())}
    return Check("fine-tuned, not base", bool(nearer.mean() >= _NEARER_SHARE), figures, limit)


def check_long_texts(endpoint: ProbedEndpoint) -> Check:
    """Check that long texts are read to their end, by the cosines of probes that an engine for short ones cuts."""
    limit = f"mean >= {endpoint.limits.mean} over probes of more than {_LONG_WORDS} words"
    rows = [row for row, probe in enumerate(endpoint.bundle.probes) if len(probe.text.split()) > _LONG_WORDS]
    if not rows:
        return Check("long texts", None, {"reason": f"no probe has more than {_LONG_WORDS} words"}, limit)
    cosines = compare_vectors(endpoint.vectors[rows], endpoint.bundle.tuned[rows])
    figures = {"probes": len(rows), **cosines.to_figures()}
    return Check("long texts", cosines.mean >= endpoint.limits.mean, figures, limit)


def check_neighbours(endpoint: ProbedEndpoint) -> Check:
    """Check that queries find the same passages among the probes as with the checkpoint's vectors.

    A passage that the checkpoint scores as its own last neighbour, within what the precision explains, is no mistake.
    """
    probes = endpoint.bundle.probes
    queries, passages = ([row for row, p in enumerate(probes) if p.kind == kind] for kind in ("query", "passage"))
    k = min(_NEIGHBOURS, len(passages) // 2)
    least = endpoint.limits.overlap
    limit = f">= {least} of the {k} nearest"
    if not queries or not k:
        return Check("neighbours", None, {"reason": "too few probes"}, limit)
    expected = endpoint.bundle.tuned[queries] @ endpoint.bundle.tuned[passages].T
    scores = endpoint.vectors[queries] @ endpoint.vectors[passages].T
    last = np.sort(expected, axis=1)[:, -k, None]
    nearest = np.argsort(-scores, axis=1)[:, :k]
    correct = np.take_along_axis(expected, nearest, axis=1) >= last - 2 * (1 - endpoint.limits.mean)
    overlap = float(correct.mean())
    return Check("neighbours", overlap >= least, {"overlap": round(overlap, 4), "queries": len(queries)}, limit)


def embed_probes(client: EmbeddingClient, probes: list[Probe], batch_size: int) -> np.ndarray:
    """Return the vectors of ``probes`` in their order, float32 [probes, dimension].

    Texts that are too long are cut at the end, as those of the reference vectors were. Raises StageError for an
    endpoint that does not answer.
    """
    rows: dict[int, np.ndarray] = {}
    kinds: tuple[Kind, ...] = ("query", "passage")
    for kind in kinds:
        positions = [position for position, probe in enumerate(probes) if probe.kind == kind]
        texts = [probes[position].text for position in positions]
        vectors = client.embed(texts, kind, batch_size=batch_size, truncate="END")
        rows |= dict(zip(positions, vectors, strict=True))
    if len({row.shape for row in rows.values()}) > 1:
        raise InputError(f"{client.url} answers queries and passages with vectors of several lengths")
    return np.stack([rows[position] for position in range(len(probes))])
