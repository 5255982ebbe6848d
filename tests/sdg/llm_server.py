"""An OpenAI-compatible LLM on the loopback interface that answers by script and fails on demand."""

from __future__ import annotations

import hashlib
import json
import re
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Instead of a status: the connection is closed at once, in the middle of the usual answer, or answers byte by byte.
RESET, TORN, DRIP = 0, -1, -2
# (status, headers, body) for a request instead of the usual answer; None lets it pass.
Fault = Callable[[int, str, dict[str, Any]], tuple[int, dict[str, str], str] | None]


class LlmServer:
    """What was asked, and how to fail: ``fault`` sees the request's number, path and body."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.authorizations: set[str | None] = set()
        self.proxy_authorizations: set[str | None] = set()
        self.teams: set[str | None] = set()
        self.fault: Fault | None = None
        self.edit: Callable[[str, str], str] = lambda step, text: text
        self.delay = 0.0  # seconds that an answer takes
        self.url = ""
        self._lock = threading.Lock()

    def answer(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], str]:
        with self._lock:
            self.requests.append((path, body))
            number = len(self.requests)
        time.sleep(self.delay)
        if self.fault and (fault := self.fault(number, path, body)):
            status, headers, text = fault
            return (status, headers, text) if status > 0 else (status, {}, self.usual(number, path, body)[2])
        return self.usual(number, path, body)

    def usual(self, number: int, path: str, body: dict[str, Any]) -> tuple[int, dict[str, str], str]:
        if path.endswith("/embeddings"):
            return 200, {}, json.dumps({"data": [_vector(i, text) for i, text in enumerate(body["input"])]})
        asked = body["messages"][:2][-1]["content"]
        step, content = _content(asked if isinstance(asked, str) else asked[0]["text"])
        message = {"role": "assistant", "content": self.edit(step, content)}
        usage = {"prompt_tokens": 100, "completion_tokens": 10}
        return (
            200,
            {},
            json.dumps(
                {
                    "choices": [{"message": message, "finish_reason": "stop"}],
                    "usage": usage,
                    "system_fingerprint": str(number),
                }
            ),
        )


@contextmanager
def llm_server(tls: ssl.SSLContext | None = None, *, port: int = 0) -> Iterator[LlmServer]:
    """A running server, with ``tls`` for https; it is gone afterwards."""
    script = LlmServer()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            script.authorizations.add(self.headers["authorization"])
            script.proxy_authorizations.add(self.headers["proxy-authorization"])
            script.teams.add(self.headers["x-team"])
            status, headers, text = script.answer(self.path, body)
            if status == RESET:
                self.connection.close()
                return
            self.send_response(status if status > 0 else 200)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(text.encode())))
            self.end_headers()
            content = text.encode()
            if status == DRIP:
                for position in range(len(content)):
                    self.wfile.write(content[position : position + 1])
                    self.wfile.flush()
                    time.sleep(0.02)
            else:
                self.wfile.write(content[: len(content) // 2] if status == TORN else content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 1024
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *_: object) -> None:
            """A client that hangs up is part of the tests."""

    server = Server(("127.0.0.1", port), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    script.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}/v1"
    try:
        yield script
    finally:
        server.shutdown()
        server.server_close()


def _content(prompt: str) -> tuple[str, str]:
    """The step that the prompt asks for, and an answer in the form that it asks for."""
    segments = [int(number) for number in re.findall(r"^Segment (\d+)\b", prompt, re.MULTILINE)]
    if "pair_id" in prompt:
        listed = json.loads(re.search(r"Pairs: (\[.*\])", prompt).group(1))
        score = {"score": 8, "justification": "fine"}
        evaluations = [
            {
                "pair_id": pair["pair_id"],
                **dict.fromkeys(("relevance", "accuracy", "context_support", "clarity"), score),
                "overall": {"score": 5 + pair["pair_id"], "assessment": pair["question"]},
                "improvements": "",
            }
            for pair in listed
        ]
        return "judge", json.dumps({"evaluations": evaluations})
    if "question_id" in prompt:
        listed = json.loads(re.search(r"Questions: (\[.*\])", prompt).group(1))
        answers = [
            {"question_id": one["question_id"], "answer": f"It is {one['question']}", "segment_ids": segments[-1:]}
            for one in listed
            if "nobody knows" not in one["question"]
        ]
        return "answers", json.dumps({"answers": answers})
    if segments:
        document = prompt.split("<<<DOCUMENT")[-1]
        counts = Counter(re.findall(r"\w{5,}", document))
        words = sorted(counts, key=lambda word: (counts[word], word))  # what tells the document from others first
        pairs = [
            {
                "question": f"what about {words[number % len(words)]} number {number}",
                "answer": f"answer {number}",
                "question_complexity": 3,
                "query_type": "contextual",
                "reasoning_type": "factual",
                "segment_ids": [segments[number % len(segments)]],
                "hop_count": 1,
                "hop_contexts": [],
            }
            for number in range(3)
        ]
        return "pairs", json.dumps({"pairs": pairs})
    item = {"text": "thing", "description": "a thing", "importance": "high"}
    return "artifacts", json.dumps({"key_concepts": [item]})


def _vector(index: int, text: str) -> dict[str, Any]:
    """Equal texts point the same way, others elsewhere."""
    values = [0.0] * 64
    digest = hashlib.sha256(text.encode()).digest()
    values[digest[0] % 64] = 1.0
    values[digest[1] % 64] += 0.5
    return {"index": index, "embedding": values}
