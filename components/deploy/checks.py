"""What can be found out about an endpoint, one check at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.core.bundle import Bundle, Probe
from components.core.endpoint import Endpoint
from components.core.errors import InputError, StageError
from components.core.parity import LIMITS, NORM_TOLERANCE, Limits, closeness, largest_norm_error, row_cosines

BATCH = 8
_ALONE_EVERY = 4
_NEARER_SHARE = 0.95


@dataclass(frozen=True)
class Check:
    """One thing found out about an endpoint. ``passed`` is None when it could not be decided; ``figures`` say why."""

    name: str
    passed: bool | None
    figures: dict[str, Any]
    limit: str

    def __str__(self) -> str:
        verdict = {True: "passed", False: "FAILED", None: "skipped"}[self.passed]
        found = ", ".join(f"{name} {value}" for name, value in self.figures.items())
        return f"{verdict:<8} {self.name:<22} {found} ({self.limit})"


@dataclass(frozen=True)
class Served:
    """The endpoint with its vectors of all probes, float32 [probes, dimension], asked for in batches of eight."""

    endpoint: Endpoint
    bundle: Bundle
    vectors: np.ndarray

    @property
    def limits(self) -> Limits:
        return LIMITS[self.bundle.manifest.precision]


def guarded(name: str, limit: str, ask: Callable[[], tuple[bool, dict[str, Any]]]) -> Check:
    """A check that asks the endpoint more; an answer that is none fails it."""
    try:
        return Check(name, *ask(), limit)
    except StageError as error:
        return Check(name, False, {"error": str(error)}, limit)


def is_ready(endpoint: Endpoint) -> tuple[bool, dict[str, Any]]:
    """Whether the service calls itself ready."""
    ready = endpoint.ready()
    return ready, {"ready": ready}


def lists_its_name(endpoint: Endpoint) -> tuple[bool, dict[str, Any]]:
    """Whether /v1/models has the name that clients give."""
    names = endpoint.models()
    return endpoint.model in names, {"found": names[:5]}


def norm(served: Served) -> Check:
    """Whether dot products are cosines."""
    if not served.bundle.manifest.l2_normalize:
        return Check("length 1", None, {"reason": "the model does not normalise"}, "")
    limit = NORM_TOLERANCE[served.bundle.manifest.precision]
    error = largest_norm_error(served.vectors)
    return Check("length 1", error <= limit, {"largest error": round(error, 7)}, f"<= {limit}")


def nearness(served: Served) -> Check:
    """Whether each vector is the checkpoint's, as far as the precision allows."""
    found = closeness(served.vectors, served.bundle.tuned)
    return Check("cosine to fine-tuned", found.within(served.limits), found.figures(), str(served.limits))


def identity(served: Served) -> Check:
    """The base model as negative control, on the probes where it differs by more than the precision explains."""
    tuned, base = served.bundle.tuned, served.bundle.base
    differ = row_cosines(tuned, base) < served.limits.minimum
    limit = f"nearer on >= {_NEARER_SHARE:.0%} of the probes where they differ"
    if not differ.any():
        return Check("fine-tuned, not base", None, {"reason": "both give the same vectors for every probe"}, limit)
    nearer = row_cosines(served.vectors, tuned)[differ] > row_cosines(served.vectors, base)[differ]
    figures = {"differ": int(differ.sum()), "nearer": int(nearer.sum())}
    return Check("fine-tuned, not base", bool(nearer.mean() >= _NEARER_SHARE), figures, limit)


def behaviour(served: Served) -> list[Check]:
    """The checks that need requests of their own: batches, encodings, prefixes, limits."""
    repeat = f"min cosine >= {served.limits.repeat}"
    return [
        guarded("repeatable", repeat, lambda: _same(served, embed(served.endpoint, served.bundle.probes, BATCH))),
        guarded("batch of 1", repeat, lambda: _alone(served)),
        guarded("batch of all", repeat, lambda: _same(served, _together(served))),
        guarded("base64", "equal to float", lambda: _base64(served)),
        guarded("query and passage", "differ as their prefixes do", lambda: _prefixes(served)),
        guarded("too long, NONE", "refused", lambda: _refused(served)),
        guarded("too long, END", repeat, lambda: _cut(served)),
    ]


def _same(served: Served, vectors: np.ndarray) -> tuple[bool, dict[str, Any]]:
    lowest = closeness(vectors, served.vectors).minimum
    return lowest >= served.limits.repeat, {"min": round(lowest, 7)}


def _alone(served: Served) -> tuple[bool, dict[str, Any]]:
    rows = slice(None, None, _ALONE_EVERY)
    alone = embed(served.endpoint, served.bundle.probes[rows], 1)
    lowest = closeness(alone, served.vectors[rows]).minimum
    return lowest >= served.limits.repeat, {"min": round(lowest, 7), "texts": len(alone)}


def _together(served: Served) -> np.ndarray:
    return embed(served.endpoint, served.bundle.probes, len(served.bundle.probes))


def _base64(served: Served) -> tuple[bool, dict[str, Any]]:
    texts = [probe.text for probe in served.bundle.probes if probe.kind == "query"][:BATCH]
    as_float, as_base64 = (
        served.endpoint.embed(texts, "query", encoding_format=encoding) for encoding in ("float", "base64")
    )
    largest = float(np.abs(as_float - as_base64).max())
    return largest <= NORM_TOLERANCE["fp32"], {"largest difference": largest}


def _prefixes(served: Served) -> tuple[bool, dict[str, Any]]:
    """Clients send bare texts; only the service can tell a query from a passage."""
    how = served.bundle.encoder
    as_query, as_passage = (served.endpoint.embed(["a short text"], kind) for kind in ("query", "passage"))
    cosine = closeness(as_query, as_passage).minimum
    same = cosine >= served.limits.repeat
    return same == (how.query_prefix == how.passage_prefix), {"cosine": round(cosine, 7)}


def _refused(served: Served) -> tuple[bool, dict[str, Any]]:
    found = {}
    for kind in ("query", "passage"):
        try:
            served.endpoint.embed([_too_long(served)], kind, truncate="NONE")
            found[kind] = "answered"
        except InputError:
            found[kind] = "refused"
    return set(found.values()) == {"refused"}, found


def _cut(served: Served) -> tuple[bool, dict[str, Any]]:
    """With END only what stands beyond the limit is lost: another end gives the same vector."""
    text = _too_long(served)
    vectors = served.endpoint.embed([f"{text} one", f"{text} another end"], "passage", truncate="END")
    cosine = closeness(vectors[:1], vectors[1:]).minimum
    return cosine >= served.limits.repeat, {"cosine": round(cosine, 7)}


def _too_long(served: Served) -> str:
    """Every word is a token at least."""
    how = served.bundle.encoder
    return " ".join(["word"] * (max(how.query_max_length, how.passage_max_length) + 1))


def embed(endpoint: Endpoint, probes: list[Probe], batch_size: int) -> np.ndarray:
    """Vectors of ``probes`` in their order; longer texts are cut at the end, as the references were."""
    rows: dict[int, np.ndarray] = {}
    for kind in ("query", "passage"):
        places = [place for place, probe in enumerate(probes) if probe.kind == kind]
        texts = [probes[place].text for place in places]
        rows |= dict(zip(places, endpoint.embed(texts, kind, batch_size=batch_size, truncate="END"), strict=True))
    if len({row.shape for row in rows.values()}) > 1:
        raise InputError(f"{endpoint.url} answers queries and passages with vectors of several lengths")
    return np.stack([rows[place] for place in range(len(probes))])
