from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from components.core.artifacts import seal
from components.core.encoder.checkpoint import load_checkpoint
from components.core.errors import ActionNeeded, InputError
from components.core.runner import Source, execute
from components.eval.component import STAGE, EvalConfig
from components.eval.program import run

pytestmark = pytest.mark.slow

SMALL = {"k_values": [1, 10], "encode_batch_tokens": 2048}


def evaluate(work: Path, checkpoint: Path, eval_data: Path, golden: Path | None = None, **settings: object) -> dict:
    return run(
        EvalConfig(**{**SMALL, **settings}),
        checkpoint=checkpoint,
        eval_data=eval_data,
        golden_eval=golden,
        eval_results=work / "eval_results",
        report=work / "report.html",
    )


def results(work: Path) -> dict:
    return json.loads((work / "eval_results" / "eval_results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory, collection: Path, write_beir) -> Path:
    """One question, judged by document, about the passages of ``collection``."""
    document = json.loads((collection / "corpus.jsonl").read_text().splitlines()[0])["metadata"]["document"]
    query = {"_id": "g1", "text": f"how does {document} work"}
    return write_beir(tmp_path_factory.mktemp("golden") / "set", None, [query], [("g1", document, 1)])


def test_base_against_a_worse_model(tmp_path: Path, checkpoints: dict[str, Path], collection: Path, golden: Path):
    """The whole stage as the runner starts it, with a golden set and a cut-off that only the gate asks for."""
    outcome = execute(
        STAGE,
        EvalConfig(**SMALL, gate_k=5, max_golden_loss=1.0),
        inputs={
            "checkpoint": Source(checkpoints["noisy"]),
            "eval_data": Source(collection),
            "golden_eval": Source(golden),
        },
        outputs={"eval_results": tmp_path / "eval_results", "report": tmp_path / "report.html"},
        uris={},
    )
    found = results(tmp_path)
    assert outcome.results == {"passed": False}
    assert found["gate"]["passed"] is False
    assert not any("golden" in reason for reason in found["gate"]["reasons"])
    assert outcome.metrics["gain"] == pytest.approx(
        found["finetuned"]["NDCG"]["NDCG@5"] - found["base"]["NDCG"]["NDCG@5"]
    )
    assert outcome.metrics["gain_low"] <= outcome.metrics["gain"] <= outcome.metrics["gain_high"]
    assert outcome.metrics["queries"] == found["_metadata"]["queries"] == 30
    assert found["_metadata"]["k_values"] == [1, 5, 10]
    assert list(found) == ["bm25", "base", "finetuned", "golden", "cost", "gate", "_metadata"]
    assert found["golden"]["queries"] == outcome.metrics["golden_queries"] == 1
    assert outcome.metrics["golden_base_ndcg_at_10"] == found["golden"]["base"]["NDCG"]["NDCG@10"] == 1.0
    assert outcome.metrics["base_precision_at_1"] == found["base"]["Precision"]["P@1"]
    per_query = json.loads((tmp_path / "eval_results" / "per_query.json").read_text())["test"]
    mean = sum(query["base"]["NDCG@10"] for query in per_query.values()) / len(per_query)
    assert mean == pytest.approx(found["base"]["NDCG"]["NDCG@10"], abs=2e-5)
    kinds = json.loads((tmp_path / "eval_results" / "slices.json").read_text())["test"]
    assert sum(kind["queries"] for kind in kinds if kind["field"] == "length") in (0, 30)
    assert 0 < outcome.metrics["gain_p_value"] == found["gate"]["p_value"] <= 1
    assert "Quality gate not passed" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_sealed_checkpoint_of_an_earlier_run_is_the_champion(
    tmp_path: Path, checkpoints: dict[str, Path], collection: Path
) -> None:
    """The noisy model is no match for it, and vectors of 64 numbers are measured as well."""
    shutil.copytree(checkpoints["base"], tmp_path / "served")
    seal(tmp_path / "served", "checkpoint")
    inputs = {"checkpoint": checkpoints["noisy"], "eval_data": collection, "champion": tmp_path / "served"}
    outcome = execute(
        STAGE,
        EvalConfig(**SMALL, min_gain=-1.0, eval_dimensions=[64]),
        inputs={name: Source(path) for name, path in inputs.items()},
        outputs={"eval_results": tmp_path / "eval_results", "report": tmp_path / "report.html"},
        uris={},
    )
    found = results(tmp_path)
    assert outcome.results == {"passed": False}
    assert "served now" in found["gate"]["reasons"][1]
    assert found["champion"] == found["base"]
    assert found["dimensions"]["64"]["champion"]["NDCG"]["NDCG@10"] < 1.0
    assert set(found["cost"]) == {"base", "champion", "finetuned"}
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "NDCG@10 of shorter vectors" in page
    assert "What an index costs" in page


def test_one_query(tmp_path: Path, checkpoints: dict[str, Path], collection: Path, write_beir) -> None:
    """BEIR's own search fails on exactly one query."""
    corpus = [json.loads(line) for line in (collection / "corpus.jsonl").read_text().splitlines()[:3]]
    query = {"_id": "q", "text": corpus[0]["text"][:60]}
    data = write_beir(tmp_path / "one", corpus, [query], [("q", corpus[0]["_id"], 1)])
    metrics = evaluate(tmp_path, checkpoints["base"], data, eval_bm25=False)
    assert metrics["base_ndcg_at_10"] == metrics["finetuned_ndcg_at_10"] == 1.0
    assert metrics["passed"] is False
    assert "min_eval_queries" in results(tmp_path)["gate"]["reasons"][1]


def _no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def _torn_weights(directory: Path) -> None:
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:50_000])


def _no_tokenizer(directory: Path) -> None:
    for file in (*directory.glob("*token*"), *directory.glob("vocab*")):
        file.unlink()


def _no_settings(directory: Path) -> None:
    (directory / "encoder.json").unlink()


def _empty(directory: Path) -> None:
    shutil.rmtree(directory)
    directory.mkdir()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_empty, r"is no checkpoint \(no config.json\)"),
        (_no_weights, r"has no weights \(\*\.safetensors\)"),
        (_torn_weights, "cannot be loaded as a model"),
        (_no_tokenizer, "has no tokenizer"),
        (_no_settings, r"has no encoder\.json"),
    ],
)
def test_a_checkpoint_that_is_none(tmp_path: Path, checkpoints: dict[str, Path], collection: Path, spoil, message):
    broken = shutil.copytree(checkpoints["base"], tmp_path / "checkpoint")
    spoil(broken)
    with pytest.raises(InputError, match=message) as raised:
        evaluate(tmp_path, broken, collection)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "eval_results").exists()
    assert not (tmp_path / "report.html").exists()


def test_a_query_with_its_answers_id_is_refused(tmp_path: Path, checkpoints: dict[str, Path], write_beir) -> None:
    same = [{"_id": "1", "text": "a text"}]
    data = write_beir(tmp_path / "clash", same, same, [("1", "1", 1)])
    with pytest.raises(InputError, match=r"clash: query '1' and its answer have the same _id"):
        evaluate(tmp_path, checkpoints["base"], data)


@pytest.fixture
def endpoint(checkpoints: dict[str, Path]) -> Iterator[str]:
    """An embeddings service over MiniLM, as a NIM and as vLLM answers."""
    encoder = load_checkpoint(checkpoints["noisy"])

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def answer(self, body: dict) -> None:
            content = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.answer({"object": "list", "data": [{"id": "mini", "object": "model"}]})

        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/v2/embed":
                kind = {"query": "query", "document": "passage"}[asked["input_type"]]
                self.answer({"embeddings": {"float": encoder.encode(asked["texts"], kind).tolist()}})
                return
            vectors = encoder.encode(asked["input"], asked["input_type"]).tolist()
            data = [{"object": "embedding", "index": i, "embedding": v} for i, v in enumerate(vectors)]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            self.answer({"object": "list", "model": asked["model"], "data": data, "usage": usage})

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("api", ["nim", "vllm"])
def test_a_served_model_scores_as_its_checkpoint(
    tmp_path: Path, checkpoints: dict[str, Path], collection: Path, endpoint: str, api: str
) -> None:
    served = {"eval_base": False, "eval_bm25": False, "eval_nim": True, "nim_url": endpoint}
    served["embedding_api_backend"] = api
    metrics = evaluate(tmp_path, checkpoints["noisy"], collection, **served, nim_model="mini")
    found = results(tmp_path)
    for family, values in found["finetuned"].items():
        assert found["nim"][family] == pytest.approx(values, abs=1e-4), family
    about = found["_metadata"]["nim"]
    assert (about["api_backend"], about["repeated"]) == (api, {"requests": 0, "invalid_vectors": 0})
    compared = found["_metadata"]["nim_metric_comparison"]
    assert compared
    assert all(one["within"] for one in compared)
    assert metrics["passed"] is False
    assert found["gate"]["reasons"] == [
        "The base model was not evaluated (eval_base is false), so its NDCG@10 is not known and the gate cannot pass."
    ]
    with pytest.raises(InputError, match="serves mini, not other: change nim_model"):
        evaluate(tmp_path / "again", checkpoints["noisy"], collection, **served, nim_model="other")


def test_a_service_that_is_not_there(tmp_path: Path, checkpoints: dict[str, Path], collection: Path) -> None:
    with pytest.raises(ActionNeeded, match=r"127\.0\.0\.1:9 is not ready"):
        evaluate(tmp_path, checkpoints["base"], collection, eval_nim=True, nim_url="http://127.0.0.1:9")
