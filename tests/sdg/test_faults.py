"""The ways in which hosted LLMs are known to fail: what passes ends complete, what stays is said and publishes nothing.

The rows are those of a list of faults that were seen; each is played by a server on the loopback interface.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import random
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from components.__main__ import main
from tests.sdg.llm_server import DRIP, RESET, TORN, Fault, LlmServer, llm_server

KEY = "nvapi-canary-faults"
DOCUMENTS = 6


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[LlmServer]:
    monkeypatch.setenv("NVIDIA_API_KEY", KEY)
    # Waiting between tries is not what is tested.
    monkeypatch.setattr("components.sdg.llm.client._LONGEST_BACK_OFF_SECONDS", 0.01)
    with llm_server() as running:
        yield running


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    directory = tmp_path / "corpus"
    directory.mkdir()
    for number in range(DOCUMENTS):
        sentences = [f"Sentence {part} of document {number} talks about machine{number}x{part}." for part in range(12)]
        (directory / f"{number}.txt").write_text(" ".join(sentences), encoding="utf-8")
    return directory


def run(url: str, corpus: Path, work: Path, **settings: Any) -> int:
    given = [f"{n}={v if isinstance(v, str) else json.dumps(v)}" for n, v in settings.items()]
    return main(["sdg", "--work", str(work), "--corpus", str(corpus), f"llm_base_url={url}", *given])


def records(work: Path) -> list[dict[str, Any]]:
    lines = (work / "qa_pairs" / "qa_pairs.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line for the user, which names no key and is no traceback."""
    errors = capsys.readouterr().err
    assert "Traceback" not in errors
    assert KEY not in errors
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def once(status: int, headers: dict[str, str] | None = None, body: str = "") -> Fault:
    """The first try of every request fails."""
    return times(1, status, headers, body)


def times(count: int, status: int, headers: dict[str, str] | None = None, body: str = "") -> Fault:
    seen: Counter[str] = Counter()
    lock = threading.Lock()

    def fault(number: int, path: str, asked: dict[str, Any]) -> tuple[int, dict[str, str], str] | None:
        with lock:
            seen[key := json.dumps(asked)] += 1
            return (status, headers or {}, body) if seen[key] <= count else None

    return fault


def first(status: int, headers: dict[str, str] | None = None, body: str = "") -> Fault:
    """The very first request of the run fails."""
    return lambda number, path, asked: (status, headers or {}, body) if number == 1 else None


def always(status: int, headers: dict[str, str] | None = None, body: str = "") -> Fault:
    return lambda number, path, asked: (status, headers or {}, body)


def after(count: int, status: int, body: str = "") -> Fault:
    return lambda number, path, asked: (status, {}, body) if number > count else None


def share(status: int) -> Fault:
    """30 % of all requests fail."""
    return lambda number, path, asked: (status, {}, "") if random.Random(number).random() < 0.3 else None


def soon() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)


PASSES: dict[str, Fault] = {
    "429 on the first request": first(429),
    "429 with seconds to wait": once(429, {"retry-after": "0.05"}),
    "429 with a date to wait for": first(429, {"retry-after": soon()}),
    "429 without a word on waiting": once(429),
    "429 with nonsense to wait for": once(429, {"retry-after": "soon"}),
    "500 on the first request": first(500),
    "500 for 30 %": share(500),
    "502 twice for each": times(2, 502),
    "503 twice for each": times(2, 503),
    "504 twice for each": times(2, 504),
    "reset on the first request": first(RESET),
    "resets for 30 %": share(RESET),
    "a torn answer": once(TORN),
    "an answer byte by byte": first(DRIP),
    "a login page with status 200": once(200, {}, "<html>Sign in</html>"),
    "an empty body": once(200),
    "a list instead of an object": once(200, {}, "[]"),
    "null instead of an object": once(200, {}, "null"),
    "no choices": once(200, {}, '{"choices": []}'),
    "content null": once(200, {}, '{"choices": [{"message": {"content": null}}]}'),
    "empty content": once(200, {}, '{"choices": [{"message": {"content": "  "}}]}'),
    "endless nesting": once(200, {}, "[" * 200_000),
}


@pytest.mark.parametrize("fault", PASSES.values(), ids=PASSES.keys())
def test_what_passes_ends_complete(server: LlmServer, corpus: Path, tmp_path: Path, fault: Fault) -> None:
    server.fault = fault
    assert run(server.url, corpus, tmp_path, max_attempts=15, request_timeout=2) == 0
    made = records(tmp_path)
    assert len(made) == DOCUMENTS
    for record in made:
        assert record["deduplicated_qa_pairs"]
        assert len(record["deduplicated_qa_pairs"]) == len(record["qa_evaluations"]["evaluations"])


QUOTA = '{"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}'
STOPS: dict[str, tuple[Fault, int, str]] = {
    "401": (always(401), 3, "the key is refused"),
    "403": (always(403), 3, "access is refused"),
    "404: the model is gone": (always(404), 3, "nvidia/nemotron-3-nano-30b-a3b"),
    "407 of a proxy": (always(407), 3, "proxy"),
    "402 midway": (after(9, 402), 3, "quota"),
    "403 midway": (after(9, 403), 3, "access is refused"),
    "429 that means the quota, midway": (after(9, 429, QUOTA), 3, "the quota is used up"),
    "429 for an hour": (always(429, {"retry-after": "3600"}), 75, "max_retry_wait"),
    "429 for ever": (always(429, {"retry-after": "0"}), 75, "did not answer"),
    "500 for ever": (always(500), 75, "HTTP 500"),
    "503 from the middle on": (after(9, 503), 75, "HTTP 503"),
    "resets for ever": (always(RESET), 75, "did not answer"),
    "a login page for ever": (always(200, {}, "<html>Sign in</html>"), 75, "not JSON"),
    "a redirect to another host": (always(307, {"location": "https://elsewhere.example/v1"}), 3, "elsewhere"),
    "400 for everything": (always(400), 3, "HTTP 400"),
    "413 for one document": (
        lambda number, path, asked: (413, {}, "") if "document 3" in str(asked) else None,
        3,
        "5 of 6 documents are done",
    ),
}


@pytest.mark.parametrize(("fault", "code", "words"), STOPS.values(), ids=STOPS.keys())
def test_what_does_not_pass_is_said_and_publishes_nothing(
    server: LlmServer,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fault: Fault,
    code: int,
    words: str,
) -> None:
    server.fault = fault
    assert run(server.url, corpus, tmp_path / "work", max_attempts=2, request_timeout=2) == code
    assert words in said(capsys)
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_costs_a_handful_of_requests(server: LlmServer, corpus: Path, tmp_path: Path, status: int) -> None:
    server.fault = always(status)
    assert run(server.url, corpus, tmp_path) == 3
    assert len(server.requests) <= 4  # those in flight


@pytest.mark.parametrize("status", [402, 429, 500])
def test_what_was_paid_before_the_stop_is_not_paid_again(
    server: LlmServer, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int
) -> None:
    kept = {"ledger_uri": str(tmp_path / "ledger"), "max_attempts": 1}
    server.fault = after(9, status, QUOTA)
    assert run(server.url, corpus, tmp_path, **kept) in (3, 75)
    assert "nothing was published" in said(capsys)
    answered = {json.dumps(asked) for _, asked in server.requests[:9]}
    server.requests.clear()
    server.fault = None
    assert run(server.url, corpus, tmp_path, **kept) == 0
    assert not answered & {json.dumps(asked) for _, asked in server.requests}
    assert len(answered) == 9


def judged(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[str, str], str]:
    """The judge's answer with its evaluations changed."""

    def edit(step: str, text: str) -> str:
        return json.dumps({"evaluations": change(json.loads(text)["evaluations"])}) if step == "judge" else text

    return edit


def paired(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[str, str], str]:
    def edit(step: str, text: str) -> str:
        return json.dumps({"pairs": change(json.loads(text)["pairs"])}) if step == "pairs" else text

    return edit


def first_time(edit: Callable[[str, str], str]) -> Callable[[str, str], str]:
    """``edit`` for the first answer with this text, as it is afterwards."""
    seen: set[str] = set()

    def choose(step: str, text: str) -> str:
        if text in seen:
            return text
        seen.add(text)
        return edit(step, text)

    return choose


WELL_MEANT: dict[str, Callable[[str, str], str]] = {
    "bare JSON": lambda step, text: text,
    "fenced": lambda step, text: f"```json\n{text}\n```",
    "words around it": lambda step, text: f"Sure! {text} Hope it helps.",
    "after reasoning": lambda step, text: f"<think>maybe {{ or not }}</think>\n{text}",
    "more keys than asked for": lambda step, text: json.dumps({**json.loads(text), "note": 1, "confidence": "high"}),
    "scores in another order": judged(lambda found: found[::-1]),
    "one score missing": judged(lambda found: found[:-1]),
    "a score for a pair that is none": judged(lambda found: [*found, {**found[0], "pair_id": 99}]),
    "a score twice": judged(lambda found: [*found, found[0]]),
    "the same question three times": paired(lambda found: [found[0]] * 3),
    "a segment that does not exist": paired(lambda found: [{**found[0], "segment_ids": [77]}, *found[1:]]),
    "a wrong type, once": first_time(paired(lambda found: [{**pair, "hop_count": "many"} for pair in found])),
    "a missing key, once": first_time(paired(lambda found: [{"question": pair["question"]} for pair in found])),
    "NaN for a score, once": first_time(lambda step, text: text.replace('"score": 8', '"score": NaN')),
    "9/10 for a score, once": first_time(lambda step, text: text.replace('"score": 8', '"score": "9/10"')),
    "a score out of range, once": first_time(lambda step, text: text.replace('"score": 8', '"score": 80')),
    "half a character, once": first_time(
        paired(lambda found: [{**found[0], "question": "what is \ud800 about?"}, *found[1:]])
    ),
    "an empty object, once": first_time(lambda step, text: "{}" if step != "artifacts" else text),
    "an empty list, once": first_time(paired(lambda found: [])),
    "half a JSON, once": first_time(lambda step, text: text[: len(text) // 2]),
    "prose, once": first_time(lambda step, text: "I am sorry, here are some thoughts instead."),
}


@pytest.mark.parametrize("edit", WELL_MEANT.values(), ids=WELL_MEANT.keys())
def test_answers_that_can_be_used_or_repaired_end_complete(
    server: LlmServer, corpus: Path, tmp_path: Path, edit: Callable[[str, str], str]
) -> None:
    server.edit = edit
    assert run(server.url, corpus, tmp_path) == 0
    made = records(tmp_path)
    assert len(made) == DOCUMENTS
    for record in made:
        pairs, scores = record["deduplicated_qa_pairs"], record["qa_evaluations"]["evaluations"]
        assert pairs
        questions = [pair["question"] for pair in pairs]
        assert len(set(questions)) == len(questions)
        assert [score["overall"]["assessment"] for score in scores] == questions  # each has its own verdict
        assert all(1 <= score["relevance"]["score"] <= 10 for score in scores)
        assert all(set(pair["segment_ids"]) <= {chunk["chunk_id"] for chunk in record["chunks"]} for pair in pairs)


def completion(**choice: Any) -> str:
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})


HOPELESS: dict[str, dict[str, Any]] = {
    "always an empty object": {"edit": lambda step, text: "{}"},
    "always prose": {"edit": lambda step, text: "No."},
    "all segments unknown": {"edit": paired(lambda found: [{**pair, "segment_ids": [77]} for pair in found])},
    "the judge scores none of them": {"edit": judged(lambda found: [{**score, "pair_id": 50} for score in found])},
    "always cut off": {"fault": always(200, {}, completion(message={"content": '{"p'}, finish_reason="length"))},
    "content filter": {"fault": always(200, {}, completion(message={"content": ""}, finish_reason="content_filter"))},
    "refusal": {"fault": always(200, {}, completion(message={"content": None, "refusal": "no"}))},
}


@pytest.mark.parametrize("fault", HOPELESS.values(), ids=HOPELESS.keys())
def test_answers_that_stay_useless_are_no_success(
    server: LlmServer, corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: dict[str, Any]
) -> None:
    for name, value in fault.items():
        setattr(server, name, value)
    assert run(server.url, corpus, tmp_path / "work", max_attempts=2) == 3
    assert "0 of 6 documents are done" in said(capsys)
    assert len(server.requests) <= 6 * DOCUMENTS
    assert list((tmp_path / "work").iterdir()) == []


def test_a_cut_off_answer_gets_more_room_once(server: LlmServer, corpus: Path, tmp_path: Path) -> None:
    def cut(number: int, path: str, asked: dict[str, Any]) -> tuple[int, dict[str, str], str] | None:
        small = asked.get("max_tokens") == 100
        return (200, {}, completion(message={"content": '{"pa'}, finish_reason="length")) if small else None

    server.fault = cut
    assert run(server.url, corpus, tmp_path, max_tokens=100) == 0
    assert {asked.get("max_tokens") for path, asked in server.requests if "chat" in path} == {100, 200}


def test_an_endpoint_that_hangs_is_asked_again(server: LlmServer, corpus: Path, tmp_path: Path) -> None:
    release = threading.Event()

    def hang(number: int, path: str, asked: dict[str, Any]) -> None:
        if number <= 3:
            release.wait(20)

    server.fault = hang
    try:
        assert run(server.url, corpus, tmp_path, request_timeout=0.5) == 0
    finally:
        release.set()
    assert len(records(tmp_path)) == DOCUMENTS


def test_a_poisoned_document_does_not_stop_the_others(server: LlmServer, corpus: Path, tmp_path: Path) -> None:
    server.fault = lambda number, path, asked: (400, {}, "") if "document 3" in str(asked) else None
    assert run(server.url, corpus, tmp_path, min_success=0.8) == 0
    assert [bool(record["deduplicated_qa_pairs"]) for record in records(tmp_path)] == [n != 3 for n in range(6)]
    result = json.loads((tmp_path / "qa_pairs" / "generation_result.json").read_text())
    assert result["documents_without_pairs"] == ["3.txt"]


@pytest.mark.parametrize(
    ("url", "code", "words"),
    [
        ("http://127.0.0.1:9/v1", 3, "cannot be reached"),
        ("https://no-such-host.invalid/v1", 3, "cannot be reached"),
        ("http://169.254.169.254/v1", 2, "cloud's own services"),
        ("http://metadata.google.internal/v1", 2, "cloud's own services"),
        ("http://llm.example.com/v1", 2, "use https"),
        ("https://user:secret@llm.example.com/v1", 2, "a password in it"),
        ("file:///etc/passwd", 2, "expected https"),
    ],
)
def test_addresses_that_do_not_answer_or_must_not_be_asked(
    corpus: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    url: str,
    code: int,
    words: str,
) -> None:
    monkeypatch.setenv("NVIDIA_API_KEY", KEY)
    monkeypatch.setattr("components.sdg.llm.client._LONGEST_BACK_OFF_SECONDS", 0.01)
    assert run(url, corpus, tmp_path / "work", max_attempts=2) == code
    assert words in said(capsys)


@pytest.mark.parametrize("key", [None, "", "nvapi\nwith a line", "schlüssel"])
def test_a_key_that_is_none_is_said_before_anything_is_sent(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str | None
) -> None:
    monkeypatch.delenv("NVIDIA_API_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("NVIDIA_API_KEY", key)
    assert run("https://llm.example.com/v1", corpus, tmp_path / "work") == 2
    assert "NVIDIA_API_KEY" in said(capsys)


@pytest.mark.parametrize(
    ("cap", "words"),
    [
        ({"max_tokens_total": 2000}, "max_tokens_total"),
        ({"max_cost": 0.002, "prices": {"m": {"prompt": 1, "completion": 1}}}, "max_cost"),
    ],
    ids=["tokens", "cost"],
)
def test_a_cap_stops_before_it_is_exceeded_and_a_higher_one_goes_on(
    server: LlmServer,
    corpus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    cap: dict[str, Any],
    words: str,
) -> None:
    roles = ("artifact_extraction", "qa_generation", "quality_judge", "embed")
    same = {f"{role}_model": "m" for role in roles} | {"ledger_uri": str(tmp_path / "ledger"), "max_tokens": 50}
    assert run(server.url, corpus, tmp_path / "work", **same, **cap) == 3
    assert words in said(capsys)
    # The server counts 110 tokens for each chat.
    assert 0 < 110 * sum("chat" in path for path, _ in server.requests) <= 2000
    assert run(server.url, corpus, tmp_path / "work", **same) == 0
    bodies = [json.dumps(asked) for _, asked in server.requests]
    assert len(bodies) == len(set(bodies))


def self_signed(path: Path) -> Path:
    """A certificate of 127.0.0.1 and its key, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    return path


def test_a_certificate_that_nobody_signed_is_not_trusted(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NVIDIA_API_KEY", KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(self_signed(tmp_path / "certificate.pem"))
    with llm_server(context) as server:
        assert run(server.url, corpus, tmp_path / "work", max_attempts=2) == 3
        assert "certificate is not trusted" in said(capsys)
        assert not server.requests


def test_a_proxy_of_the_environment_is_used_unless_it_is_told_to_leave_the_host_alone(
    server: LlmServer, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", server.url.replace("http://", "http://me:secret@").removesuffix("/v1"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert run("http://llm/v1", corpus, tmp_path / "through") == 0
    assert {path for path, _ in server.requests} == {"http://llm/v1/chat/completions", "http://llm/v1/embeddings"}
    assert server.proxy_authorizations == {f"Basic {base64.b64encode(b'me:secret').decode()}"}
    server.requests.clear()
    assert run(server.url, corpus, tmp_path / "past") == 0
    assert {path for path, _ in server.requests} == {"/v1/chat/completions", "/v1/embeddings"}
