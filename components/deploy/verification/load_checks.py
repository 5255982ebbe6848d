"""Checks that send requests of their own: batches, encodings, lengths, and latency under load."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from components.core.errors import InputError, StageError
from components.core.serving.vector_limits import NORM_TOLERANCE, compare_vectors, compute_norm_error
from components.deploy.verification.checks import BATCH, Check, ProbedEndpoint, embed_probes, run_check

_ALONE_EVERY = 4
_SINGLE_REQUESTS = 20
_CLIENTS = 4
_REQUESTS_EACH = 5


def check_requests(endpoint: ProbedEndpoint) -> list[Check]:
    """Check that vectors do not depend on batches and encodings, and that prefixes and length limits hold."""
    repeat = f"min cosine >= {endpoint.limits.repeat}"
    return [
        run_check(
            "repeatable",
            repeat,
            lambda: _compare_repeated(endpoint, embed_probes(endpoint.client, endpoint.bundle.probes, BATCH)),
        ),
        run_check("batch of 1", repeat, lambda: _check_single_texts(endpoint)),
        run_check("batch of all", repeat, lambda: _compare_repeated(endpoint, _embed_in_one_batch(endpoint))),
        run_check("base64", "equal to float", lambda: _check_base64(endpoint)),
        _check_dimensions(endpoint),
        run_check("query and passage", "differ as their prefixes do", lambda: _check_prefixes(endpoint)),
        run_check("too long, NONE", "refused", lambda: _check_refusal(endpoint)),
        run_check("too long, END", repeat, lambda: _check_truncation(endpoint)),
    ]


def _compare_repeated(endpoint: ProbedEndpoint, vectors: np.ndarray) -> tuple[bool, dict[str, Any]]:
    lowest = compare_vectors(vectors, endpoint.vectors).minimum
    return lowest >= endpoint.limits.repeat, {"min": round(lowest, 7)}


def _check_single_texts(endpoint: ProbedEndpoint) -> tuple[bool, dict[str, Any]]:
    rows = slice(None, None, _ALONE_EVERY)
    alone = embed_probes(endpoint.client, endpoint.bundle.probes[rows], 1)
    lowest = compare_vectors(alone, endpoint.vectors[rows]).minimum
    return lowest >= endpoint.limits.repeat, {"min": round(lowest, 7), "texts": len(alone)}


def _embed_in_one_batch(endpoint: ProbedEndpoint) -> np.ndarray:
    return embed_probes(endpoint.client, endpoint.bundle.probes, len(endpoint.bundle.probes))


def _check_base64(endpoint: ProbedEndpoint) -> tuple[bool, dict[str, Any]]:
    texts = [probe.text for probe in endpoint.bundle.probes if probe.kind == "query"][:BATCH]
    as_float, as_base64 = (
        endpoint.client.embed(texts, "query", encoding_format=encoding) for encoding in ("float", "base64")
    )
    largest = float(np.abs(as_float - as_base64).max())
    return largest <= NORM_TOLERANCE["fp32"], {"largest difference": largest}


def _check_dimensions(endpoint: ProbedEndpoint) -> Check:
    """Check that shorter vectors are the first numbers of the long ones, of length 1; not every service has them."""
    limit = f"first half, normalised: min cosine >= {endpoint.limits.repeat}"
    half = endpoint.bundle.manifest.dimension // 2
    probes = endpoint.bundle.probes
    rows = [row for row, probe in enumerate(probes) if probe.kind == "query"][:BATCH]
    try:
        shorter = endpoint.client.embed([probes[row].text for row in rows], "query", shortened_to=half)
    except InputError as refusal:
        return Check("dimensions", None, {"reason": f"not supported: {refusal}"[:120]}, limit)
    except StageError as error:
        return Check("dimensions", False, {"error": str(error)}, limit)
    if shorter.shape[1] == endpoint.bundle.manifest.dimension:
        return Check("dimensions", None, {"reason": "the service ignores them"}, limit)
    if shorter.shape[1] != half:
        return Check("dimensions", False, {"asked": half, "found": shorter.shape[1]}, limit)
    lowest = compare_vectors(shorter, endpoint.vectors[rows, :half]).minimum
    length = compute_norm_error(shorter) if endpoint.bundle.manifest.l2_normalize else 0.0
    passed = lowest >= endpoint.limits.repeat and length <= NORM_TOLERANCE[endpoint.bundle.manifest.precision]
    return Check("dimensions", passed, {"min": round(lowest, 7), "largest length error": round(length, 7)}, limit)


def _check_prefixes(endpoint: ProbedEndpoint) -> tuple[bool, dict[str, Any]]:
    """Check that the service puts prefixes before the bare texts that clients send."""
    encoder = endpoint.bundle.encoder
    as_query, as_passage = (endpoint.client.embed(["a short text"], kind) for kind in ("query", "passage"))
    cosine = compare_vectors(as_query, as_passage).minimum
    same = cosine >= endpoint.limits.repeat
    return same == (encoder.query_prefix == encoder.passage_prefix), {"cosine": round(cosine, 7)}


def _check_refusal(endpoint: ProbedEndpoint) -> tuple[bool, dict[str, Any]]:
    outcomes = {}
    for kind in ("query", "passage"):
        try:
            endpoint.client.embed([_build_long_text(endpoint)], kind, truncate="NONE")
            outcomes[kind] = "answered"
        except InputError:
            outcomes[kind] = "refused"
    return set(outcomes.values()) == {"refused"}, outcomes


def _check_truncation(endpoint: ProbedEndpoint) -> tuple[bool, dict[str, Any]]:
    """With END only what stands beyond the limit is lost: another end gives the same vector."""
    text = _build_long_text(endpoint)
    vectors = endpoint.client.embed([f"{text} one", f"{text} another end"], "passage", truncate="END")
    cosine = compare_vectors(vectors[:1], vectors[1:]).minimum
    return cosine >= endpoint.limits.repeat, {"cosine": round(cosine, 7)}


def _build_long_text(endpoint: ProbedEndpoint) -> str:
    """Return a text that is too long: every word is a token at least."""
    encoder = endpoint.bundle.encoder
    return " ".join(["word"] * (max(encoder.query_max_length, encoder.passage_max_length) + 1))


def check_latency(endpoint: ProbedEndpoint, budget_ms: float | None, previous: dict[str, float] | None) -> Check:
    """Measure milliseconds of short queries in turn, and texts a second of four clients with batches of eight.

    Every vector of these requests is checked too. ``previous`` are the figures of the release before.
    """
    limit = f"p95 <= {budget_ms:g} ms" if budget_ms else "measured"
    queries = [probe.text for probe in endpoint.bundle.probes if probe.kind == "query"]
    passages = [probe.text for probe in endpoint.bundle.probes if probe.kind == "passage"]
    short = sorted(queries, key=len)[: max(1, len(queries) // 2)]
    try:
        times = [_time_request(endpoint, short[n % len(short)]) for n in range(_SINGLE_REQUESTS)]
        began = time.monotonic()
        with ThreadPoolExecutor(_CLIENTS) as clients:
            sent = sum(clients.map(lambda n: _send_batches(endpoint, passages, n), range(_CLIENTS)))
        rate = sent / (time.monotonic() - began)
    except StageError as error:
        return Check("latency", False, {"error": str(error)}, limit)
    p50, p95 = (round(float(np.percentile(times, p)) * 1000, 1) for p in (50, 95))
    figures: dict[str, Any] = {"p50_ms": p50, "p95_ms": p95, "texts_per_second": round(rate, 1)}
    figures |= {f"previous_{name}": value for name, value in (previous or {}).items()}
    return Check("latency", None if budget_ms is None else p95 <= budget_ms, figures, limit)


def _time_request(endpoint: ProbedEndpoint, text: str) -> float:
    began = time.monotonic()
    endpoint.client.embed([text], "query")
    return time.monotonic() - began


def _send_batches(endpoint: ProbedEndpoint, passages: list[str], first: int) -> int:
    """Send the requests of one client; return how many texts they held."""
    batch = [passages[(first + n) % len(passages)] for n in range(BATCH)]
    for _ in range(_REQUESTS_EACH):
        endpoint.client.embed(batch, "passage")
    return _REQUESTS_EACH * len(batch)
