"""The client of embedding endpoints: services that are slow, broken, busy or wrong."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from components.core.errors import ActionNeeded, InputError, Transient
from components.core.serving.client import EmbeddingClient

Reply = tuple[int, dict[str, str], bytes]
Script = Callable[[int, dict[str, Any]], Reply]


def answer(rows: Any) -> Reply:
    return 200, {}, json.dumps({"data": rows}).encode()


def right(request: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"index": n, "embedding": vector_of(text)} for n, text in enumerate(request["input"])]


def vector_of(text: str) -> list[float]:
    return [float(len(text)), 1.0, -0.5]


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """A service that answers the n-th request (from 1) with ``script(n, body)``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        count = 0

        def do_POST(self) -> None:
            Handler.count += 1
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, headers, content = script(Handler.count, body)
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long the client would have waited."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


def embed(url: str, texts: list[str], **options: Any) -> np.ndarray:
    with EmbeddingClient(url, "m", timeout=60) as endpoint:
        return endpoint.embed(texts, "query", **options)


def test_vectors_come_in_the_order_of_the_texts_however_they_are_answered() -> None:
    texts = [f"{'x' * n}" for n in range(1, 8)]
    with serving(lambda _, request: answer(right(request)[::-1])) as url:
        found = embed(url, texts, batch_size=3)
    np.testing.assert_array_equal(found, np.array([vector_of(text) for text in texts], dtype=np.float32))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_busy_service_is_asked_again(status: int, waits: list[float]) -> None:
    with serving(lambda n, request: (status, {}, b"busy") if n < 3 else answer(right(request))) as url:
        assert embed(url, ["abc"]).tolist() == [[3.0, 1.0, -0.5]]
    assert waits == [0.25, 0.5]


def test_the_wait_that_the_service_asks_for_is_kept(waits: list[float]) -> None:
    with serving(lambda n, request: (429, {"Retry-After": "7"}, b"") if n == 1 else answer(right(request))) as url:
        embed(url, ["abc"])
    assert waits == [7.0]


def test_a_service_that_stays_away_is_transient() -> None:
    loading = r"did not answer 6 times \(503 loading\)"
    reply = (503, {}, b'{"error": {"message": "loading"}}')
    with serving(lambda *_: reply) as url, pytest.raises(Transient, match=loading):
        embed(url, ["abc"])
    with pytest.raises(Transient, match="did not answer 6 times"):
        embed(url, ["abc"])


def test_a_service_that_never_finishes_is_transient() -> None:
    def slow(*_: Any) -> Reply:
        threading.Event().wait(0.3)
        return answer([])

    with (
        serving(slow) as url,
        EmbeddingClient(url, "m", timeout=0.05, attempts=2) as endpoint,
        pytest.raises(Transient, match="did not answer 2 times"),
    ):
        endpoint.embed(["a"], "query")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        *((status, ActionNeeded) for status in (401, 402, 403)),
        *((status, InputError) for status in (302, 400, 404, 422)),
    ],
)
def test_a_refusal_is_final(status: int, error: type[Exception], waits: list[float]) -> None:
    reply = (status, {"Location": "http://127.0.0.1:9/"}, b'{"detail": "no\\nmore"}')
    with serving(lambda *_: reply) as url, pytest.raises(error, match=f"{status} no more"):
        embed(url, ["abc"])
    assert waits == []


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        pytest.param((200, {}, b"<html>Sign in</html>"), "does not answer with JSON", id="a page"),
        pytest.param((200, {}, b"[1]"), "no vectors", id="a list"),
        pytest.param((200, {}, b'{"data": [{"index": 0}]}'), "no vectors", id="no embedding"),
        pytest.param(answer([{"index": 0, "embedding": "!!"}] * 2), "no vectors", id="no base64"),
        pytest.param(answer([{"index": 0, "embedding": [1.0]}]), "positions", id="one too few"),
        pytest.param(answer([{"index": None, "embedding": [1.0]}] * 2), "no vectors", id="no position"),
        pytest.param(answer([{"index": 0, "embedding": [1.0]}] * 2), "positions", id="one twice"),
        pytest.param(answer([{"index": n, "embedding": [1.0]} for n in (1, 2)]), "positions", id="from one"),
        pytest.param(answer([{"index": n, "embedding": [1.0] * (n + 1)} for n in range(2)]), "lengths", id="lengths"),
        pytest.param(answer([{"index": n, "embedding": [float("nan")]} for n in range(2)]), "NaN", id="NaN"),
        pytest.param(answer([{"index": n, "embedding": [float("inf")]} for n in range(2)]), "NaN", id="infinity"),
        pytest.param(answer([{"index": n, "embedding": [0.0, 0.0]} for n in range(2)]), "zero", id="zero"),
        pytest.param(answer([{"index": n, "embedding": [1.0, 2.0]} for n in range(2)]), "2 dimensions", id="dimension"),
    ],
)
def test_answers_that_are_no_vectors_need_a_person(reply: Reply, message: str) -> None:
    with serving(lambda *_: reply) as url, pytest.raises(ActionNeeded, match=message):
        embed(url, ["a", "b"], dimension=3)


@pytest.mark.parametrize(("broken", "retries", "works"), [(2, 2, True), (3, 2, False), (1, 0, False)])
def test_a_broken_vector_is_asked_for_again_by_itself(broken: int, retries: int, works: bool) -> None:
    """The second text's first ``broken`` vectors hold NaN."""
    asked: list[list[str]] = []

    def script(n: int, request: dict[str, Any]) -> Reply:
        asked.append(request["input"])
        rows = right(request)
        for row, text in zip(rows, request["input"], strict=True):
            if text == "bc" and n <= broken:
                row["embedding"] = [1.0, float("nan"), 1.0]
        return answer(rows)

    with serving(script) as url, EmbeddingClient(url, "m", invalid_retries=retries) as endpoint:
        if works:
            found = endpoint.embed(["a", "bc", "def"], "query", dimension=3)
            np.testing.assert_array_equal(found, [vector_of(text) for text in ("a", "bc", "def")])
            assert asked == [["a", "bc", "def"], ["bc"], ["bc"]]
            assert (endpoint.retries, endpoint.invalid) == (2, 2)
        else:
            with pytest.raises(ActionNeeded, match="NaN or infinity"):
                endpoint.embed(["a", "bc", "def"], "query")


def test_an_answer_in_another_models_name_needs_a_person() -> None:
    reply = 200, {}, json.dumps({"model": "other", "data": [{"index": 0, "embedding": [1.0, 1.0, 1.0]}]}).encode()
    with serving(lambda *_: reply) as url, pytest.raises(ActionNeeded, match="answers as other when asked for m"):
        embed(url, ["a"])


def test_vectors_whose_length_changes_from_request_to_request() -> None:
    def grow(n: int, request: dict[str, Any]) -> Reply:
        return answer([{"index": 0, "embedding": [1.0] * n}])

    with serving(grow) as url, pytest.raises(ActionNeeded, match="several lengths"):
        embed(url, ["a", "b"], batch_size=1)


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://[::1", "http://host:port"])
def test_what_is_no_url_is_wrong_input(url: str) -> None:
    with EmbeddingClient(url, "m") as endpoint:
        with pytest.raises(InputError, match="is no URL"):
            endpoint.embed(["a"], "query")
        with pytest.raises(InputError, match="is no URL"):
            endpoint.is_ready()


def test_the_key_goes_with_the_request_and_into_no_message(caplog: pytest.LogCaptureFixture) -> None:
    with (
        serving(lambda *_: (401, {}, b"who?")) as url,
        EmbeddingClient(url, "m", api_key="canary") as endpoint,
        pytest.raises(ActionNeeded) as caught,
    ):
        endpoint.embed(["a"], "query")
    assert "canary" not in f"{caught.value}{caplog.text}"


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_vllm_is_asked_in_its_own_words(encoding: Any) -> None:
    """vLLM's CohereEmbedRequest and CohereEmbedResponse: a passage is a document, and rows have no positions."""
    seen: list[dict[str, Any]] = []

    def script(_: int, body: dict[str, Any]) -> Reply:
        seen.append(body)
        assert set(body) <= {"model", "input_type", "texts", "output_dimension", "embedding_types", "truncate"}
        rows = [vector_of(text)[: body.get("output_dimension")] for text in body["texts"]]
        sent = [base64.b64encode(np.array(row, dtype="<f4").tobytes()).decode() for row in rows]
        embeddings = {"float": rows} if encoding == "float" else {"base64": sent}
        return 200, {}, json.dumps({"id": "embd-1", "embeddings": embeddings, "texts": None}).encode()

    with serving(script) as url, EmbeddingClient(url, "m", api="vllm") as endpoint:
        found = endpoint.embed(["a", "bc"], "passage", truncate="NONE", encoding_format=encoding)
        assert endpoint.embed(["a"], "query", encoding_format=encoding, shortened_to=2).shape == (1, 2)
        with pytest.raises(ActionNeeded, match="no vectors"), serving(lambda *_: answer([])) as other:
            EmbeddingClient(other, "m", api="vllm").embed(["a"], "query")
    np.testing.assert_array_equal(found, [[1.0, 1.0, -0.5], [2.0, 1.0, -0.5]])
    first, second = seen
    assert first == {
        "model": "m", "texts": ["a", "bc"], "input_type": "document", "truncate": "NONE", "embedding_types": [encoding],
    }  # fmt: skip
    assert (second["input_type"], second["output_dimension"]) == ("query", 2)


def test_shorter_vectors_are_asked_for_and_may_be_refused_silently() -> None:
    def script(_: int, request: dict[str, Any]) -> Reply:
        assert request["dimensions"] == 2
        return answer(right(request))

    with serving(script) as url:
        assert embed(url, ["abc"], shortened_to=2).shape == (1, 3)
