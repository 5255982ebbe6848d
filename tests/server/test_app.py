"""The embedding service over HTTP, with real exported models, as its clients use it."""

from __future__ import annotations

import base64
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sentence_transformers import SentenceTransformer

from components.server import app as app_module
from components.server.app import build_app
from components.server.model import OnnxModel
from tests.exported import Exported
from tests.server.serving import serving
from tests.waiting import LIMIT_SECONDS, wait_for

pytestmark = pytest.mark.slow

NAME = "team/embed"
LONG = "word " * 200


@pytest.fixture(scope="module")
def url(minilm: Exported) -> Iterator[str]:
    with serving(build_app(OnnxModel(minilm.model), NAME)) as url:
        yield url


@pytest.fixture(scope="module")
def reference(minilm: Exported) -> SentenceTransformer:
    return SentenceTransformer(str(minilm.checkpoint), device="cpu")


def post(url: str, **changes: Any) -> httpx.Response:
    body = {"model": NAME, "input": ["how to fit valve 7"], "input_type": "query"} | changes
    return httpx.post(f"{url}/v1/embeddings", json=body, timeout=LIMIT_SECONDS)


def vectors(response: httpx.Response) -> np.ndarray:
    rows = response.raise_for_status().json()["data"]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    return np.array([row["embedding"] for row in rows], dtype=np.float32)


def test_the_official_client_gets_the_models_vectors(url: str, reference: SentenceTransformer) -> None:
    """openai's client asks for base64 unless told otherwise."""
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    texts = ["open a file", "", "naïve café 北京 😀"][::2]
    for how in (openai.omit, "float", "base64"):
        answer = client.embeddings.create(
            model=NAME, input=texts, encoding_format=how, extra_body={"input_type": "query"}
        )
        found = [np.frombuffer(base64.b64decode(v), "<f4") if isinstance(v, str) else v
                 for v in (row.embedding for row in answer.data)]  # fmt: skip
        np.testing.assert_allclose(found, reference.encode(texts), atol=1e-5)
    assert [model.id for model in client.models.list()] == [NAME]
    tokens = len(reference.tokenizer("open a file").input_ids)
    assert client.embeddings.create(model=NAME, input="open a file").usage.total_tokens == tokens


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        pytest.param({"model": "other"}, 404, "there is no model 'other'", id="model"),
        pytest.param({"model": None}, 400, "model", id="no model"),
        pytest.param({"input": []}, 400, "input", id="no texts"),
        pytest.param({"input": [""]}, 400, "input", id="empty text"),
        pytest.param({"input": ["a"] * 2049}, 400, "input", id="too many"),
        pytest.param({"input": [[1, 2]]}, 400, "input", id="token ids"),
        pytest.param({"input_type": "document"}, 400, "input_type", id="input type"),
        pytest.param({"encoding_format": "int8"}, 400, "encoding_format", id="encoding"),
        pytest.param({"dimensions": 385}, 400, "384", id="dimensions"),
        pytest.param({"dimensions": 0}, 400, "dimensions", id="no dimensions"),
        pytest.param({"embedding_type": "int8"}, 400, "embedding_type", id="embedding type"),
        pytest.param({"input": LONG}, 400, "limit for a query is 32", id="too long"),
        pytest.param({"input": LONG, "input_type": "passage"}, 400, "limit for a passage is 64", id="too long passage"),
    ],
)
def test_wrong_requests_are_answered_as_openai_does(
    url: str, changes: dict[str, Any], status: int, message: str
) -> None:
    response = post(url, **changes)
    error = response.json()["error"]
    assert response.status_code == status
    assert message in error["message"]
    assert (error["type"], set(error)) == ("invalid_request_error", {"message", "type", "param", "code"})


def test_shortened_vectors_are_those_of_sentence_transformers(url: str, minilm: Exported) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none")
    model = SentenceTransformer(str(minilm.checkpoint), device="cpu", truncate_dim=64)
    expected = model.encode(["open a file"], normalize_embeddings=True)
    for how in ("float", "base64"):
        answer = client.embeddings.create(model=NAME, input="open a file", dimensions=64, encoding_format=how)
        found = answer.data[0].embedding
        vector = np.frombuffer(base64.b64decode(found), "<f4") if isinstance(found, str) else found
        np.testing.assert_allclose([vector], expected, atol=1e-5)


def test_half_a_character_is_a_wrong_request(url: str) -> None:
    body = f'{{"model": "{NAME}", "input": ["a", "\\ud800"]}}'
    response = httpx.post(f"{url}/v1/embeddings", content=body, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "input")


def test_the_clients_own_errors(url: str) -> None:
    client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.embeddings.create(model="other", input="a")
    with pytest.raises(openai.BadRequestError) as caught:
        client.embeddings.create(model=NAME, input=LONG)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("POST", "/v1/embeddings", b"{", 400),
        ("POST", "/v1/embeddings", b"[1]", 400),
        ("GET", "/v1/embeddings", b"", 405),
        ("GET", "/nowhere", b"", 404),
    ],
)
def test_what_is_no_request_has_an_error_of_the_same_form(
    url: str, method: str, path: str, content: bytes, status: int
) -> None:
    response = httpx.request(method, url + path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code == status
    assert response.json()["error"]["message"]


def test_a_large_body_is_refused_whether_or_not_it_says_its_length(url: str) -> None:
    def parts() -> Iterator[bytes]:
        for _ in range(app_module.MAX_BODY_BYTES // 2**20 + 1):
            yield b" " * 2**20

    for content in (parts(), b"".join(parts())):
        response = httpx.post(f"{url}/v1/embeddings", content=content, headers={"Content-Type": "application/json"})
        assert response.status_code == 413


def test_truncation_keeps_the_end_that_was_asked_for(url: str, reference: SentenceTransformer) -> None:
    words = ["red", "green", "blue", "white"] * 12 + ["cat", "dog", "horse", "bird"] * 12
    first, last = " ".join(words[:30]), " ".join(words[-30:])
    for truncate, kept in (("END", first), ("START", last)):
        cut = vectors(post(url, input=[" ".join(words)], truncate=truncate))[0]
        assert float(cut @ reference.encode(kept)) > 0.999, truncate
    assert vectors(post(url, input=[" ".join(words[:5])], truncate="NONE")).shape == (1, 384)


def test_queries_and_passages_have_their_own_prefix(llama: Exported) -> None:
    model = SentenceTransformer(str(llama.checkpoint), device="cpu", trust_remote_code=False)
    with serving(build_app(OnnxModel(llama.model), NAME)) as url:
        for kind, prompt in (("query", "query: "), ("passage", "passage: ")):
            found = vectors(post(url, input=["fit the valve"], input_type=kind))[0]
            expected = model.encode(prompt + "fit the valve", prompt="", normalize_embeddings=True)
            assert float(found @ expected) > 0.999, kind


def test_requests_at_the_same_time_share_batches_and_keep_their_answers(url: str) -> None:
    texts = [f"{'long ' * (n % 20)}text number {n}" for n in range(96)]
    alone = {text: vectors(post(url, input=text))[0] for text in texts[:12]}
    before = metric(url, "nemotron_embed_batch_texts_count")
    with ThreadPoolExecutor(32) as pool:
        together = list(pool.map(lambda text: vectors(post(url, input=text))[0], texts))
    for text, vector in alone.items():
        np.testing.assert_allclose(together[texts.index(text)], vector, atol=1e-5)
    assert metric(url, "nemotron_embed_batch_texts_count") - before < len(texts)


def metric(url: str, name: str, **labels: str) -> float:
    families = text_string_to_metric_families(httpx.get(f"{url}/v1/metrics").text)
    samples = (sample for family in families for sample in family.samples)
    return sum(s.value for s in samples if s.name == name and labels.items() <= s.labels.items())


def test_metrics_count_what_was_answered(url: str) -> None:
    names = {
        "nemotron_embed_requests_total": {"status": "200"},
        "nemotron_embed_texts_total": {"input_type": "passage"},
    }
    before = [metric(url, name, **labels) for name, labels in names.items()]
    failed = metric(url, "nemotron_embed_requests_total", status="404")
    post(url, input=["a", "b", "c"], input_type="passage").raise_for_status()
    post(url, model="other")
    assert [metric(url, name, **labels) for name, labels in names.items()] == [before[0] + 1, before[1] + 3]
    assert metric(url, "nemotron_embed_requests_total", status="404") == failed + 1


def test_metadata_says_which_model_it_is(url: str, minilm: Exported) -> None:
    about = httpx.get(f"{url}/v1/metadata").json()
    assert (about["digest"], about["dimension"]) == (minilm.metrics["digest"], 384)
    assert (about["query_max_length"], about["passage_max_length"]) == (32, 64)
    assert about["modelInfo"][0]["shortName"] == NAME
    assert httpx.get(f"{url}/v1/manifest").json()["digest"] == minilm.metrics["digest"]
    assert set(httpx.get(f"{url}/v1/version").json()) == {"release", "api"}


class _Meeting:
    """A model that computes only when as many batches as it has threads are there at the same time."""

    def __init__(self, model: OnnxModel) -> None:
        self._model, self._all = model, threading.Barrier(model.batches_at_once, timeout=LIMIT_SECONDS)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def embed(self, ids: Any) -> np.ndarray:
        self._all.wait()
        return self._model.embed(ids)


def test_each_thread_has_a_batch_of_its_own(minilm: Exported) -> None:
    model = _Meeting(OnnxModel(minilm.model, threads=3))
    # Lengths too far apart for one batch, whenever they arrive.
    texts = ["word " * count for count in (1, 8, 25)]
    with serving(build_app(model, NAME)) as url, ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda text: post(url, input=text), texts))
    assert [answer.status_code for answer in answers] == [200, 200, 200]


class _Broken:
    """A model that fails while it computes."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def embed(self, ids: Any) -> np.ndarray:
        raise RuntimeError("CUDA error: an illegal memory access")


def test_a_model_that_fails_is_an_error_of_the_server_and_does_not_end_it(minilm: Exported) -> None:
    with serving(build_app(_Broken(OnnxModel(minilm.model)), NAME)) as url:
        for _ in range(2):
            response = post(url)
            assert (response.status_code, response.json()["error"]["type"]) == (500, "server_error")
            assert "CUDA" not in response.text
        assert httpx.get(f"{url}/v1/health/live").status_code == 200


def test_more_than_the_queue_takes_is_refused_at_once(minilm: Exported) -> None:
    with serving(build_app(OnnxModel(minilm.model), NAME, max_texts=2)) as url:
        response = post(url, input=["a"] * 200)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert vectors(post(url)).shape == (1, 384)


@contextmanager
def server_process(model: Path, drain_seconds: float) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A server that is ready, and its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    argv = ["--model", str(model), "--name", NAME, "--port", str(port), "--drain-seconds", str(drain_seconds)]
    server = subprocess.Popen([sys.executable, "-m", "components.server", *argv], stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: _status(f"{url}/v1/health/ready") == 200, server)
        yield server, url
    finally:
        server.kill()
        server.wait()


def test_while_it_drains_it_is_unready_and_answers(minilm: Exported) -> None:
    with server_process(minilm.model, drain_seconds=3600) as (server, url):
        server.terminate()
        wait_for(lambda: _status(f"{url}/v1/health/ready") == 503, server)
        assert _status(f"{url}/v1/health/live") == 200
        assert vectors(post(url)).shape == (1, 384)


def test_it_drains_finishes_and_ends(minilm: Exported) -> None:
    with server_process(minilm.model, drain_seconds=0.1) as (server, _):
        server.terminate()
        assert server.wait(timeout=LIMIT_SECONDS) in (0, -signal.SIGTERM)


def _status(url: str) -> int | None:
    try:
        return httpx.get(url).status_code
    except httpx.TransportError:
        return None


def test_a_model_that_is_none_is_one_line(tmp_path: Any) -> None:
    argv = [sys.executable, "-m", "components.server", "--model", str(tmp_path), "--name", NAME]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == done.stderr.splitlines()
