"""Single components in pipelines of other people."""

from __future__ import annotations

import http.server
import importlib.util
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler
from kfp.components import load_component_from_file, load_component_from_url

import pipeline
from components.core.artifacts import ARTIFACTS
from components.kubeflow.options import read_images
from components.recipe.stages import STAGES
from tests.exported import Exported
from tests.pipeline.compiled import dangling, parse
from tests.pipeline.on_this_host import host

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def example(path: Path) -> Any:
    """The pipeline of an example, which has the name of its file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, path.stem)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_component_loads_from_its_file_and_says_what_it_takes(stage: Any) -> None:
    path = ROOT / "components" / stage.name / "component.yaml"
    assert path.read_text(encoding="utf-8") == pipeline.compile_component(stage, read_images()[stage.image])
    loaded = load_component_from_file(str(path))
    assert loaded.name == stage.name
    inputs, outputs = loaded.component_spec.inputs, loaded.component_spec.outputs
    for name in stage.inputs + stage.optional_inputs:
        assert inputs[name].type.partition("@")[0] == f"system.{ARTIFACTS[name].kfp_type}"
        assert inputs[name].optional == (name in stage.optional_inputs)
    required = {name for name, one in inputs.items() if not one.optional}
    assert required == {*stage.inputs, *(f"{name}_uri" for name in stage.by_uri)}
    assert set(outputs) == {*stage.outputs, stage.metrics_artifact, *stage.results}


def test_a_component_loads_from_an_address(address: str) -> None:
    assert load_component_from_url(address).name == "eval"


@pytest.fixture
def address() -> Iterator[str]:
    body = (ROOT / "components" / "eval" / "component.yaml").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/component.yaml"
        server.shutdown()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_compiles_and_everything_in_it_refers_to_something(path: Path, tmp_path: Path) -> None:
    assert len(EXAMPLES) == 2
    out = tmp_path / "out.yaml"
    compiler.Compiler().compile(example(path), str(out))
    whole = parse(out.read_text(encoding="utf-8"))
    assert dangling(whole) == []
    used = [name for name in whole.deployment.executors if not name.startswith("exec-importer")]
    assert used
    for name in used:
        stage = next(stage for stage in STAGES if f"exec-{stage.name}" == name)
        assert whole.container(stage.name).image == read_images()[stage.image]


@pytest.mark.slow
def test_eval_alone_compares_two_checkpoints(minilm: Exported, tmp_path: Path) -> None:
    compiled = tmp_path / "compare.yaml"
    compiler.Compiler().compile(example(ROOT / "examples" / "compare_checkpoints.py"), str(compiled))
    with host(tmp_path / "root") as runner:
        load_component_from_file(str(compiled))(
            challenger_uri=str(minilm.checkpoint),
            champion_uri=str(minilm.checkpoint),
            eval_data_uri=str(minilm.eval_data),
        )
    assert [(task.stage, task.code) for task in runner.tasks] == [("eval", 0)]
    (results,) = (tmp_path / "root").rglob("eval_results.json")
    found = json.loads(results.read_text(encoding="utf-8"))
    assert found["champion"]["NDCG"] == found["finetuned"]["NDCG"]
    assert "bm25" not in found


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_a_component_has_the_files_that_kubeflow_asks_for(stage: Any) -> None:
    directory = ROOT / "components" / stage.name
    assert yaml.safe_load((directory / "OWNERS").read_text(encoding="utf-8"))["approvers"]
    assert {path.name for path in directory.iterdir()} >= {"component.py", "README.md", "metadata.yaml", "OWNERS"}
