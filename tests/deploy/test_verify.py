"""Each way in which a service can be wrong is seen, by the check that is meant to see it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from components.core.bundle import Bundle, read_bundle
from components.core.endpoint import Endpoint
from components.deploy.checks import Check
from components.deploy.verify import main, verify
from tests.conftest import Exported
from tests.deploy.service import Fault, Service, serving


@pytest.fixture(scope="module")
def bundle(llama: Exported) -> Bundle:
    """fp32 limits on an encoder with prefixes."""
    read = read_bundle(llama.bundle)
    return replace(read, manifest=read.manifest.model_copy(update={"precision": "fp32"}))


def checks_of(service: Service, *, model: str = "embed") -> dict[str, Check]:
    with serving(service) as url, Endpoint(url, model) as endpoint:
        return {check.name: check for check in verify(endpoint, service.bundle)}


def failed(checks: dict[str, Check]) -> set[str]:
    return {name for name, check in checks.items() if check.passed is False}


def test_the_right_service_passes_every_check(bundle: Bundle) -> None:
    checks = checks_of(Service(bundle))
    assert len(checks) == 19
    undecided = {name for name, check in checks.items() if check.passed is None}
    assert failed(checks) == set()
    # No probe is that long here, and no budget was given.
    assert undecided == {"long texts", "latency"}
    assert checks["latency"].figures["p95_ms"] > 0
    assert checks["fine-tuned, not base"].figures == {"differ": 24, "nearer": 24}


def permuted(_: Service, __: Any, vectors: np.ndarray) -> np.ndarray:
    return np.roll(vectors, 1, axis=0)


def swapped_in_large_batches(_: Service, __: Any, vectors: np.ndarray) -> np.ndarray:
    return vectors[::-1] if len(vectors) > 8 else vectors


def different_alone(_: Service, __: Any, vectors: np.ndarray) -> np.ndarray:
    return vectors + 0.01 if len(vectors) == 1 else vectors


def base_model(service: Service, request: dict[str, Any], _: np.ndarray) -> np.ndarray:
    return np.stack([service.vector(request["input_type"], text, service.base) for text in request["input"]])


def not_a_number(_: Service, __: Any, vectors: np.ndarray) -> np.ndarray:
    broken = vectors.copy()
    broken[-1, 3] = np.nan
    return broken


def shorter(_: Service, __: Any, vectors: np.ndarray) -> np.ndarray:
    return vectors[:, :-1]


def missing_one(_: Service, __: Any, vectors: np.ndarray) -> np.ndarray:
    return vectors[1:]


def not_normalised(_: Service, __: Any, vectors: np.ndarray) -> np.ndarray:
    return 3 * vectors


def rounded(_: Service, __: Any, vectors: np.ndarray) -> np.ndarray:
    return np.round(vectors * 8) / 8


def no_prefix(service: Service, request: dict[str, Any], _: np.ndarray) -> np.ndarray:
    known = {text: vector for (kind, text), vector in service.tuned.items() if kind == "query"}
    return np.stack([known.get(text, service.vector("query", text)) for text in request["input"]])


def engine_of_16_tokens(service: Service, request: dict[str, Any], _: np.ndarray) -> np.ndarray:
    """The trap of an engine built for shorter texts than the model."""
    kind = request["input_type"]
    return np.stack([service.vector(kind, " ".join(text.split()[:16])) for text in request["input"]])


def cuts_at_the_start(service: Service, request: dict[str, Any], _: np.ndarray) -> np.ndarray:
    kind = request["input_type"]
    kept = service.bundle.encoder.max_length(kind) - 2
    return np.stack([service.vector(kind, " ".join(text.split()[-kept:])) for text in request["input"]])


def wrong_base64(_: Service, request: dict[str, Any], vectors: np.ndarray) -> np.ndarray:
    return vectors[:, ::-1] if request["encoding_format"] == "base64" else vectors


@pytest.mark.parametrize(
    ("fault", "seen_by"),
    [
        (permuted, "cosine to fine-tuned"),
        (swapped_in_large_batches, "batch of all"),
        (different_alone, "batch of 1"),
        (base_model, "fine-tuned, not base"),
        (not_a_number, "vectors"),
        (shorter, "dimension"),
        (missing_one, "vectors"),
        (not_normalised, "length 1"),
        (rounded, "cosine to fine-tuned"),
        (no_prefix, "query and passage"),
        (engine_of_16_tokens, "cosine to fine-tuned"),
        (cuts_at_the_start, "too long, END"),
        (wrong_base64, "base64"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_fault_is_seen(bundle: Bundle, fault: Fault, seen_by: str) -> None:
    checks = checks_of(Service(bundle, fault))
    assert seen_by in failed(checks)
    assert all(check.figures for check in checks.values())


def test_vectors_that_change_are_seen(bundle: Bundle) -> None:
    def drifting(service: Service, _: Any, vectors: np.ndarray) -> np.ndarray:
        return vectors + 0.002 * service.requests

    assert "repeatable" in failed(checks_of(Service(bundle, drifting)))


def test_a_retry_is_not_hidden(bundle: Bundle) -> None:
    service = Service(bundle)
    service.status = lambda number, _: 503 if number == 3 else 200
    checks = checks_of(service)
    assert failed(checks) == {"retries"}
    assert checks["retries"].figures == {"retries": 1}


def test_too_long_texts_must_be_refused_or_cut_as_asked(bundle: Bundle) -> None:
    service = Service(bundle)
    service.status = lambda _, request: 400 if len(request["input"][0].split()) > 64 else 200
    assert failed(checks_of(service)) == {"vectors"}

    class Lenient(Service):
        def embed(self, request: dict[str, Any]) -> Any:
            return super().embed(request | {"truncate": "END"})

    assert failed(checks_of(Lenient(bundle))) == {"too long, NONE"}


def test_another_name_is_seen(bundle: Bundle) -> None:
    assert failed(checks_of(Service(bundle), model="other")) == {"model name"}


def test_an_untrained_model_cannot_be_told_from_its_base_and_that_is_said(bundle: Bundle) -> None:
    checks = checks_of(Service(replace(bundle, base=bundle.tuned)))
    assert failed(checks) == set()
    assert checks["fine-tuned, not base"].passed is None
    assert "same vectors" in checks["fine-tuned, not base"].figures["reason"]


def test_command(llama: Exported, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    for fault, code in ((None, 0), (base_model, 3)):
        with serving(Service(bundle, fault)) as url:
            assert main(["--url", url, "--model", "embed", "--bundle", str(llama.bundle)]) == code
        shown = capsys.readouterr().out
        assert ("FAILED" in shown) == bool(code)
        assert len(shown.splitlines()) == 21
    assert main(["--url", url, "--model", "embed", "--bundle", str(llama.checkpoint)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
