"""What the original recipe gets wrong in evaluation, by its number in our list."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import pipeline
from components.core.encoder.config import EncoderConfig
from components.core.errors import InputError
from components.core.retrieval.beir_data import BeirData, read_beir
from components.core.settings import load
from components.eval.component import EvalConfig
from components.eval.program import run
from components.eval.systems import search_with_endpoint

pytestmark = pytest.mark.slow

SMALL = {"k_values": [1, 10], "encode_batch_tokens": 2048, "eval_bm25": False}


def evaluate(work: Path, checkpoint: Path, eval_data: Path, **settings: Any) -> dict[str, Any]:
    return run(
        EvalConfig(**{**SMALL, **settings}),
        checkpoint=checkpoint,
        eval_data=eval_data,
        eval_results=work / "eval_results",
        report=work / "report.html",
    )


@pytest.mark.parametrize("left", ["nothing", "LATEST.txt"])
def test_b17_without_a_fine_tuned_model_there_is_no_result(tmp_path: Path, collection: Path, left: str) -> None:
    checkpoint = tmp_path / "checkpoints"
    checkpoint.mkdir()
    if left == "LATEST.txt":
        (checkpoint / "LATEST.txt").write_text("epoch_0_step_10\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"is no checkpoint \(no config\.json\)") as raised:
        evaluate(tmp_path, checkpoint, collection)
    assert raised.value.exit_code == 2
    assert not (tmp_path / "eval_results").exists()


def test_b18_a_model_that_is_no_better_is_neither_exported_nor_deployed(
    tmp_path: Path, checkpoints: dict[str, Path], collection: Path
) -> None:
    """The gate says no, and in the compiled pipeline export and deploy stand behind what it says."""
    metrics = evaluate(tmp_path, checkpoints["noisy"], collection)
    assert metrics["passed"] is False
    assert metrics["gain"] < 0
    assert pipeline.main(["compile", "--from", "eval", "--out", str(tmp_path / "yaml")]) == 0
    spec = next(yaml.safe_load_all(next((tmp_path / "yaml").glob("*.yaml")).read_text(encoding="utf-8")))
    assert {"export", "deploy"}.isdisjoint(spec["root"]["dag"]["tasks"])
    (gate,) = [task for task in spec["root"]["dag"]["tasks"].values() if "triggerPolicy" in task]
    assert "eval-passed" in gate["triggerPolicy"]["condition"] and "== true" in gate["triggerPolicy"]["condition"]
    inner = spec["components"][gate["componentRef"]["name"]]["dag"]["tasks"]
    assert {"export", "deploy"} <= set(inner)


@pytest.mark.parametrize("values", [{"k_values": []}, {"k_values": [0, -3]}, {"gate_k": 0}])
def test_b27_cut_offs_that_are_none_are_refused_before_anything_is_loaded(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="eval: ") as raised:
        load(EvalConfig, values, stage="eval")
    assert "\n" not in str(raised.value)


def test_b27_every_pooling_that_training_knows_is_evaluated_and_no_other_is_accepted(
    tmp_path: Path, checkpoints: dict[str, Path], collection: Path
) -> None:
    with pytest.raises(InputError, match="pooling"):
        load(EncoderConfig, {"pooling": "max"}, stage="eval")
    found = {}
    for pooling in ("avg", "cls", "last"):
        checkpoint = shutil.copytree(checkpoints["base"], tmp_path / pooling / "checkpoint")
        about = json.loads((checkpoint / "encoder.json").read_text(encoding="utf-8"))
        (checkpoint / "encoder.json").write_text(json.dumps({**about, "pooling": pooling}), encoding="utf-8")
        metrics = evaluate(tmp_path / pooling, checkpoint, collection, eval_base=False)
        found[pooling] = metrics["finetuned_ndcg_at_10"]
    assert found["avg"] > max(found["cls"], found["last"])


def test_b28_one_query_is_enough_for_figures(
    tmp_path: Path, checkpoints: dict[str, Path], collection: Path, write_beir: Callable[..., Path]
) -> None:
    corpus = [json.loads(line) for line in (collection / "corpus.jsonl").read_text().splitlines()[:3]]
    query = {"_id": "q", "text": corpus[0]["text"][:60]}
    data = write_beir(tmp_path / "one", corpus, [query], [("q", corpus[0]["_id"], 1)])
    assert evaluate(tmp_path, checkpoints["base"], data)["base_ndcg_at_10"] == 1.0


@contextmanager
def service(requests: list[dict[str, Any]], faults: Iterator[int]) -> Iterator[str]:
    """An embeddings service that fails first with each of ``faults`` and notes what it is asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append({**body, "authorization": self.headers.get("Authorization")})
            status = next(faults, 200)
            vectors = [np.random.default_rng(len(text)).normal(size=8).tolist() for text in body["input"]]
            rows = [{"index": n, "embedding": vector} for n, vector in enumerate(vectors)]
            content = json.dumps({"data": rows} if status == 200 else {"error": {"message": "busy"}}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_b40_a_busy_service_is_asked_again_with_the_key_and_cuts_long_texts_as_we_do(
    collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    monkeypatch.setenv("NIM_API_KEY", "the-key")
    data: dict[str, BeirData] = {"test": read_beir(collection)}
    requests: list[dict[str, Any]] = []
    with service(requests, iter([429, 503, 200, 500, 504])) as url:
        found = search_with_endpoint(EvalConfig(nim_url=url, nim_model="m", nim_batch_size=16), data, 10)
    assert set(found.rankings["test"]) == set(data["test"].queries)
    batches = -(-len(data["test"].corpus) // 16) + -(-len(data["test"].queries) // 16)
    assert len(requests) == batches + 4
    assert {(one["truncate"], one["authorization"]) for one in requests} == {("END", "Bearer the-key")}
    assert {one["input_type"] for one in requests} == {"query", "passage"}
