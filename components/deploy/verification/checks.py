"""What an endpoint's vectors of the probes say about the model behind it, one check at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

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
    """One thing found out about an endpoint. ``passed`` is None when it could not be decided; ``figures`` say why."""

    name: str
    passed: bool | None
    figures: dict[str, Any]
    limit: str

    def __str__(self) -> str:
        verdict = {True: "passed", False: "FAILED", None: "skipped"}[self.passed]
        return f"{verdict:<8} {self.name:<22} {self.shown()} ({self.limit})"

    def shown(self) -> str:
        """The figures on one line."""
        return ", ".join(f"{name} {value}" for name, value in self.figures.items())


@dataclass(frozen=True)
class ProbedEndpoint:
    """The endpoint with its vectors of all probes, float32 [probes, dimension], asked for in batches of eight."""

    endpoint: EmbeddingClient
    bundle: Bundle
    vectors: np.ndarray

    @property
    def limits(self) -> ParityLimits:
        return self.bundle.manifest.limits


def guarded(name: str, limit: str, ask: Callable[[], tuple[bool, dict[str, Any]]]) -> Check:
    """A check that asks the endpoint more; an answer that is none fails it."""
    try:
        return Check(name, *ask(), limit)
    except StageError as error:
        return Check(name, False, {"error": str(error)}, limit)


def is_ready(endpoint: EmbeddingClient) -> tuple[bool, dict[str, Any]]:
    """Whether the service calls itself ready."""
    ready = endpoint.is_ready()
    return ready, {"ready": ready}


def lists_its_name(endpoint: EmbeddingClient) -> tuple[bool, dict[str, Any]]:
    """Whether /v1/models has the name that clients give."""
    names = endpoint.list_models()
    return endpoint.model in names, {"found": names[:5]}


def norm(served: ProbedEndpoint) -> Check:
    """Whether dot products are cosines."""
    if not served.bundle.manifest.l2_normalize:
        return Check("length 1", None, {"reason": "the model does not normalise"}, "")
    limit = NORM_TOLERANCE[served.bundle.manifest.precision]
    error = compute_norm_error(served.vectors)
    return Check("length 1", error <= limit, {"largest error": round(error, 7)}, f"<= {limit}")


def nearness(served: ProbedEndpoint) -> Check:
    """Whether each vector is the checkpoint's, as far as the precision allows."""
    found = compare_vectors(served.vectors, served.bundle.tuned)
    return Check("cosine to fine-tuned", found.is_within(served.limits), found.to_figures(), str(served.limits))


def identity(served: ProbedEndpoint) -> Check:
    """The base model as negative control, on the probes where it differs by more than the precision explains."""
    tuned, base = served.bundle.tuned, served.bundle.base
    differ = compute_row_cosines(tuned, base) < served.limits.minimum
    limit = f"nearer on >= {_NEARER_SHARE:.0%} of the probes where they differ"
    if not differ.any():
        return Check("fine-tuned, not base", None, {"reason": "both give the same vectors for every probe"}, limit)
    nearer = compute_row_cosines(served.vectors, tuned)[differ] > compute_row_cosines(served.vectors, base)[differ]
    figures = {"differ": int(differ.sum()), "nearer": int(nearer.sum())}
    return Check("fine-tuned, not base", bool(nearer.mean() >= _NEARER_SHARE), figures, limit)


def long_texts(served: ProbedEndpoint) -> Check:
    """Whether long texts are read to their end: the same cosines, of the probes that an engine for short ones cuts."""
    limit = f"mean >= {served.limits.mean} over probes of more than {_LONG_WORDS} words"
    rows = [row for row, probe in enumerate(served.bundle.probes) if len(probe.text.split()) > _LONG_WORDS]
    if not rows:
        return Check("long texts", None, {"reason": f"no probe has more than {_LONG_WORDS} words"}, limit)
    found = compare_vectors(served.vectors[rows], served.bundle.tuned[rows])
    return Check("long texts", found.mean >= served.limits.mean, {"probes": len(rows), **found.to_figures()}, limit)


def neighbours(served: ProbedEndpoint) -> Check:
    """Whether queries find the same passages among the probes as with the checkpoint's vectors.

    A passage that the checkpoint scores as its own last neighbour, within what the precision explains, is no mistake.
    """
    probes = served.bundle.probes
    queries, passages = ([row for row, p in enumerate(probes) if p.kind == kind] for kind in ("query", "passage"))
    k = min(_NEIGHBOURS, len(passages) // 2)
    least = served.limits.overlap
    limit = f">= {least} of the {k} nearest"
    if not queries or not k:
        return Check("neighbours", None, {"reason": "too few probes"}, limit)
    wanted = served.bundle.tuned[queries] @ served.bundle.tuned[passages].T
    found = served.vectors[queries] @ served.vectors[passages].T
    last = np.sort(wanted, axis=1)[:, -k, None]
    nearest = np.argsort(-found, axis=1)[:, :k]
    right = np.take_along_axis(wanted, nearest, axis=1) >= last - 2 * (1 - served.limits.mean)
    overlap = float(right.mean())
    return Check("neighbours", overlap >= least, {"overlap": round(overlap, 4), "queries": len(queries)}, limit)


def embed(endpoint: EmbeddingClient, probes: list[Probe], batch_size: int) -> np.ndarray:
    """Vectors of ``probes`` in their order; longer texts are cut at the end, as the references were."""
    rows: dict[int, np.ndarray] = {}
    for kind in ("query", "passage"):
        places = [place for place, probe in enumerate(probes) if probe.kind == kind]
        texts = [probes[place].text for place in places]
        rows |= dict(zip(places, endpoint.embed(texts, kind, batch_size=batch_size, truncate="END"), strict=True))
    if len({row.shape for row in rows.values()}) > 1:
        raise InputError(f"{endpoint.url} answers queries and passages with vectors of several lengths")
    return np.stack([rows[place] for place in range(len(probes))])
