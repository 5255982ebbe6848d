"""How an endpoint behaves: in batches, encodings, lengths, under load. These checks make requests of their own."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from components.core.errors import InputError, StageError
from components.core.serving.vector_limits import NORM_TOLERANCE, compare_vectors, compute_norm_error
from components.deploy.verification.checks import BATCH, Check, ProbedEndpoint, embed, guarded

_ALONE_EVERY = 4
_SINGLE_REQUESTS = 20
_CLIENTS = 4
_REQUESTS_EACH = 5


def behaviour(served: ProbedEndpoint) -> list[Check]:
    """The checks that need requests of their own: batches, encodings, prefixes, limits."""
    repeat = f"min cosine >= {served.limits.repeat}"
    return [
        guarded("repeatable", repeat, lambda: _same(served, embed(served.endpoint, served.bundle.probes, BATCH))),
        guarded("batch of 1", repeat, lambda: _alone(served)),
        guarded("batch of all", repeat, lambda: _same(served, _together(served))),
        guarded("base64", "equal to float", lambda: _base64(served)),
        _dimensions(served),
        guarded("query and passage", "differ as their prefixes do", lambda: _prefixes(served)),
        guarded("too long, NONE", "refused", lambda: _refused(served)),
        guarded("too long, END", repeat, lambda: _cut(served)),
    ]


def _same(served: ProbedEndpoint, vectors: np.ndarray) -> tuple[bool, dict[str, Any]]:
    lowest = compare_vectors(vectors, served.vectors).minimum
    return lowest >= served.limits.repeat, {"min": round(lowest, 7)}


def _alone(served: ProbedEndpoint) -> tuple[bool, dict[str, Any]]:
    rows = slice(None, None, _ALONE_EVERY)
    alone = embed(served.endpoint, served.bundle.probes[rows], 1)
    lowest = compare_vectors(alone, served.vectors[rows]).minimum
    return lowest >= served.limits.repeat, {"min": round(lowest, 7), "texts": len(alone)}


def _together(served: ProbedEndpoint) -> np.ndarray:
    return embed(served.endpoint, served.bundle.probes, len(served.bundle.probes))


def _base64(served: ProbedEndpoint) -> tuple[bool, dict[str, Any]]:
    texts = [probe.text for probe in served.bundle.probes if probe.kind == "query"][:BATCH]
    as_float, as_base64 = (
        served.endpoint.embed(texts, "query", encoding_format=encoding) for encoding in ("float", "base64")
    )
    largest = float(np.abs(as_float - as_base64).max())
    return largest <= NORM_TOLERANCE["fp32"], {"largest difference": largest}


def _dimensions(served: ProbedEndpoint) -> Check:
    """Shorter vectors must be the first numbers of the long ones, scaled to length 1; not every service gives them."""
    limit = f"first half, normalised: min cosine >= {served.limits.repeat}"
    half = served.bundle.manifest.dimension // 2
    probes = served.bundle.probes
    rows = [row for row, probe in enumerate(probes) if probe.kind == "query"][:BATCH]
    try:
        shorter = served.endpoint.embed([probes[row].text for row in rows], "query", shortened_to=half)
    except InputError as refusal:
        return Check("dimensions", None, {"reason": f"not supported: {refusal}"[:120]}, limit)
    except StageError as error:
        return Check("dimensions", False, {"error": str(error)}, limit)
    if shorter.shape[1] == served.bundle.manifest.dimension:
        return Check("dimensions", None, {"reason": "the service ignores them"}, limit)
    if shorter.shape[1] != half:
        return Check("dimensions", False, {"asked": half, "found": shorter.shape[1]}, limit)
    lowest = compare_vectors(shorter, served.vectors[rows, :half]).minimum
    length = compute_norm_error(shorter) if served.bundle.manifest.l2_normalize else 0.0
    passed = lowest >= served.limits.repeat and length <= NORM_TOLERANCE[served.bundle.manifest.precision]
    return Check("dimensions", passed, {"min": round(lowest, 7), "largest length error": round(length, 7)}, limit)


def _prefixes(served: ProbedEndpoint) -> tuple[bool, dict[str, Any]]:
    """Clients send bare texts; only the service can tell a query from a passage."""
    how = served.bundle.encoder
    as_query, as_passage = (served.endpoint.embed(["a short text"], kind) for kind in ("query", "passage"))
    cosine = compare_vectors(as_query, as_passage).minimum
    same = cosine >= served.limits.repeat
    return same == (how.query_prefix == how.passage_prefix), {"cosine": round(cosine, 7)}


def _refused(served: ProbedEndpoint) -> tuple[bool, dict[str, Any]]:
    found = {}
    for kind in ("query", "passage"):
        try:
            served.endpoint.embed([_too_long(served)], kind, truncate="NONE")
            found[kind] = "answered"
        except InputError:
            found[kind] = "refused"
    return set(found.values()) == {"refused"}, found


def _cut(served: ProbedEndpoint) -> tuple[bool, dict[str, Any]]:
    """With END only what stands beyond the limit is lost: another end gives the same vector."""
    text = _too_long(served)
    vectors = served.endpoint.embed([f"{text} one", f"{text} another end"], "passage", truncate="END")
    cosine = compare_vectors(vectors[:1], vectors[1:]).minimum
    return cosine >= served.limits.repeat, {"cosine": round(cosine, 7)}


def _too_long(served: ProbedEndpoint) -> str:
    """Every word is a token at least."""
    how = served.bundle.encoder
    return " ".join(["word"] * (max(how.query_max_length, how.passage_max_length) + 1))


def latency(served: ProbedEndpoint, budget_ms: float | None, previous: dict[str, float] | None) -> Check:
    """Milliseconds of short queries one after the other, and texts a second of four clients with batches of eight.

    Every vector of these requests is checked too. ``previous`` are the figures of the release before.
    """
    limit = f"p95 <= {budget_ms:g} ms" if budget_ms else "measured"
    queries = [probe.text for probe in served.bundle.probes if probe.kind == "query"]
    passages = [probe.text for probe in served.bundle.probes if probe.kind == "passage"]
    short = sorted(queries, key=len)[: max(1, len(queries) // 2)]
    try:
        times = [_seconds(served, short[n % len(short)]) for n in range(_SINGLE_REQUESTS)]
        began = time.monotonic()
        with ThreadPoolExecutor(_CLIENTS) as clients:
            sent = sum(clients.map(lambda n: _batches(served, passages, n), range(_CLIENTS)))
        rate = sent / (time.monotonic() - began)
    except StageError as error:
        return Check("latency", False, {"error": str(error)}, limit)
    p50, p95 = (round(float(np.percentile(times, p)) * 1000, 1) for p in (50, 95))
    figures: dict[str, Any] = {"p50_ms": p50, "p95_ms": p95, "texts_per_second": round(rate, 1)}
    figures |= {f"previous_{name}": value for name, value in (previous or {}).items()}
    return Check("latency", None if budget_ms is None else p95 <= budget_ms, figures, limit)


def _seconds(served: ProbedEndpoint, text: str) -> float:
    began = time.monotonic()
    served.endpoint.embed([text], "query")
    return time.monotonic() - began


def _batches(served: ProbedEndpoint, passages: list[str], first: int) -> int:
    """Texts sent by one client."""
    batch = [passages[(first + n) % len(passages)] for n in range(BATCH)]
    for _ in range(_REQUESTS_EACH):
        served.endpoint.embed(batch, "passage")
    return _REQUESTS_EACH * len(batch)
