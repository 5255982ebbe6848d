"""Each way in which a service can be wrong is seen, by the check that is meant to see it."""

from __future__ import annotations

import json
import time
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.core.encoder.config import EncoderConfig
from components.core.serving.bundle import Bundle, read_bundle
from components.core.serving.client import EmbeddingClient
from components.deploy.verification.checks import Check
from components.deploy.verification.verify_endpoint import Requirements, verify_endpoint
from components.deploy.verify import main
from tests.deploy.bundles import write_bundle
from tests.deploy.service import Fault, Service, serving
from tests.exported import Exported

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def bundle(llama: Exported) -> Bundle:
    """fp32 limits on an encoder with prefixes."""
    read = read_bundle(llama.bundle)
    return replace(read, manifest=read.manifest.model_copy(update={"precision": "fp32"}))


def checks_of(service: Service, *, model: str = "embed") -> dict[str, Check]:
    with serving(service) as url, EmbeddingClient(url, model) as endpoint:
        return {check.name: check for check in verify_endpoint(endpoint, service.bundle)}


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


def wrong_dimensions(_: Service, request: dict[str, Any], vectors: np.ndarray) -> np.ndarray:
    """Shorter vectors that are cut, and not scaled to length 1 again."""
    return 0.5 * vectors if request.get("dimensions") else vectors


def wrong_base64(_: Service, request: dict[str, Any], vectors: np.ndarray) -> np.ndarray:
    return vectors[:, ::-1] if request["encoding_format"] == "base64" else vectors


def now_and_then_not_a_number(service: Service, _: Any, vectors: np.ndarray) -> np.ndarray:
    """One request in seventeen, as of a kernel that overflows for some batches."""
    return vectors * np.nan if service.requests % 17 == 0 else vectors


def wrong_prefix(service: Service, request: dict[str, Any], _: np.ndarray) -> np.ndarray:
    """Queries are taken for passages and the other way round."""
    other = {"query": "passage", "passage": "query"}[request["input_type"]]
    return np.stack([service.vector(other, text) for text in request["input"]])


def garbage(_: Service, __: Any, vectors: np.ndarray) -> np.ndarray:
    drawn = np.random.default_rng(vectors.shape[0]).normal(size=vectors.shape)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


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
        (now_and_then_not_a_number, "latency"),
        (wrong_prefix, "cosine to fine-tuned"),
        (garbage, "cosine to fine-tuned"),
        (garbage, "neighbours"),
        (wrong_dimensions, "dimensions"),
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


def long_bundle(tmp_path: Path) -> Bundle:
    """Of a model that takes texts of 512 tokens, with probes of 300 words and more among the short ones."""
    how = EncoderConfig(base_model="b", query_max_length=512, passage_max_length=512)
    bundle = read_bundle(write_bundle(tmp_path / "long", 1, encoder=how))
    texts = [f"{probe.text} " + " ".join(f"w{n}" for n in range(300 if row % 4 == 0 else 3))
             for row, probe in enumerate(bundle.probes)]  # fmt: skip
    return replace(bundle, probes=[replace(p, text=text) for p, text in zip(bundle.probes, texts, strict=True)])


def test_an_engine_that_cuts_at_256_tokens_is_seen(tmp_path: Path) -> None:
    """The recipe's TensorRT profile ends at 256 tokens; short texts come out right."""
    bundle = long_bundle(tmp_path)

    def engine_of_256_tokens(service: Service, request: dict[str, Any], vectors: np.ndarray) -> np.ndarray:
        cut = [" ".join(text.split()[:254]) for text in request["input"]]
        return np.stack([service.vector(request["input_type"], text) for text in cut])

    right, wrong = checks_of(Service(bundle)), checks_of(Service(bundle, engine_of_256_tokens))
    assert failed(right) == set()
    assert right["long texts"].figures["probes"] == 4
    assert {"long texts", "cosine to fine-tuned"} <= failed(wrong)


def test_dimensions_that_are_ignored_or_refused_are_said_and_no_failure(bundle: Bundle) -> None:
    service = Service(bundle)
    service.dimensions = False
    checks = checks_of(service)
    assert failed(checks) == set()
    assert checks["dimensions"].passed is None
    service = Service(bundle)
    service.status = lambda _, request: 400 if request.get("dimensions") else 200
    assert "not supported" in checks_of(service)["dimensions"].figures["reason"]


@pytest.mark.parametrize(("budget", "passed"), [(60_000.0, True), (0.001, False)])
def test_the_latency_budget_is_kept(bundle: Bundle, budget: float, passed: bool) -> None:
    service = Service(bundle)
    wanted = Requirements(latency_budget_ms=budget, previous_latency={"p95_ms": 7.0})
    with serving(service) as url, EmbeddingClient(url, "embed") as endpoint:
        checks = {check.name: check for check in verify_endpoint(endpoint, bundle, wanted)}
    assert checks["latency"].passed is passed
    assert checks["latency"].figures["previous_p95_ms"] == 7.0
    assert checks["latency"].figures["texts_per_second"] > 0


def test_vllm_is_proven_as_a_nim_is(bundle: Bundle) -> None:
    for fault, expected in ((None, set()), (base_model, {"cosine to fine-tuned", "fine-tuned, not base"})):
        with serving(Service(bundle, fault)) as url, EmbeddingClient(url, "embed", api="vllm") as endpoint:
            checks = {check.name: check for check in verify_endpoint(endpoint, bundle)}
        assert expected <= failed(checks)
        assert fault or not failed(checks)


def beir(directory: Path, bundle: Bundle) -> Path:
    """A test set of the probes: each query's answer is its nearest passage by the checkpoint's vectors."""
    (directory / "qrels").mkdir(parents=True)
    rows = {kind: [r for r, p in enumerate(bundle.probes) if p.kind == kind] for kind in ("query", "passage")}
    for name, kind in (("corpus", "passage"), ("queries", "query")):
        lines = [json.dumps({"_id": f"{kind}{row}", "text": bundle.probes[row].text}) for row in rows[kind]]
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    best = np.argmax(bundle.tuned[rows["query"]] @ bundle.tuned[rows["passage"]].T, axis=1)
    judged = [f"query{q}\tpassage{rows['passage'][p]}\t1" for q, p in zip(rows["query"], best, strict=True)]
    (directory / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "\n".join(judged) + "\n")
    return directory


@pytest.mark.parametrize(("fault", "code"), [(None, 0), (garbage, 3)])
def test_the_test_set_is_searched_through_the_service(
    tmp_path: Path, fault: Fault | None, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """As eval does it, with what eval found as the mark."""
    bundle = read_bundle(write_bundle(tmp_path / "bundle", 1))
    data = beir(tmp_path / "data", bundle)
    results = tmp_path / "eval_results.json"
    results.write_text(json.dumps({"finetuned": {"NDCG": {"NDCG@10": 1.0}}}))
    places = ["--eval-data", str(data), "--eval-results", str(results)]
    with serving(Service(bundle, fault)) as url:
        command = ["--url", url, "--model", "embed", "--bundle", str(tmp_path / "bundle")]
        assert main([*command, *places]) == code
        (line,) = [line for line in capsys.readouterr().out.splitlines() if "test set" in line]
        assert line.startswith("FAILED" if code else "passed")
        assert ("nDCG@10 1.0" in line) == (code == 0)
        assert main([*command, *places, "--eval-max-passages", "3"]) == code
        assert "test set" not in capsys.readouterr().out


def as_noisy_as_half_precision(_: Service, request: dict[str, Any], vectors: np.ndarray) -> np.ndarray:
    """Cosine 0.997 with the right vectors, the same for a text each time."""
    noise = [np.random.default_rng(zlib.crc32(t.encode())).normal(size=vectors.shape[1]) for t in request["input"]]
    across = np.stack([n - (n @ v) * v for n, v in zip(noise, vectors, strict=True)])
    moved = vectors + 0.0776 * across / np.linalg.norm(across, axis=1, keepdims=True)
    return moved / np.linalg.norm(moved, axis=1, keepdims=True)


def test_a_model_that_loses_more_in_half_precision_is_held_to_what_it_can_keep(bundle: Bundle) -> None:
    """The noise floor that export measured counts when serving as it did for the export."""
    floor = {"mean": 0.9968, "p1": 0.9962, "min": 0.996, "deviation": 0.0002}
    found = {}
    for name, noise_floor in (("known", floor), ("unknown", {}), ("lower", {**floor, "mean": 0.9999})):
        manifest = bundle.manifest.model_copy(update={"precision": "fp16", "noise_floor": noise_floor})
        service = Service(replace(bundle, manifest=manifest), as_noisy_as_half_precision)
        found[name] = checks_of(service)["cosine to fine-tuned"]
    assert [check.passed for check in found.values()] == [True, False, False]
    assert found["known"].limit.startswith("mean >= 0.9962")
    assert found["known"].figures["mean"] == pytest.approx(0.997, abs=1e-4)


def test_a_service_that_starts_is_waited_for(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = str(write_bundle(tmp_path / "bundle", 1))
    started = time.monotonic()
    assert main(["--url", "http://127.0.0.1:9", "--model", "m", "--bundle", where, "--wait-seconds", "0.3"]) == 3
    assert time.monotonic() - started >= 0.3
    assert "was not ready within 0.3 s" in capsys.readouterr().err


def test_command(llama: Exported, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    for fault, code in ((None, 0), (base_model, 3)):
        with serving(Service(bundle, fault)) as url:
            assert main(["--url", url, "--model", "embed", "--bundle", str(llama.bundle)]) == code
        shown = capsys.readouterr().out
        assert ("FAILED" in shown) == bool(code)
        assert len(shown.splitlines()) == 21
    assert main(["--url", url, "--model", "embed", "--bundle", str(llama.checkpoint)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
