"""What a published model came with survives fine-tuning, and its own code runs only as it was reviewed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer

from components.core.encoder.bidirectional import LlamaBidirectionalConfig, LlamaBidirectionalModel
from components.core.encoder.checkpoint import load_base, load_checkpoint, save_checkpoint
from components.core.encoder.config import EncoderConfig
from components.core.encoder.model import Encoder
from components.core.errors import InputError

pytestmark = pytest.mark.slow

TEXTS = ["How long is the warranty?", "Loosen the screw, then press the valve down.", "valve " * 30]
# Published models bring code like this: it is for those who load them without this project.
CODE = """
import torch
from transformers import LlamaConfig, LlamaModel


class Config(LlamaConfig):
    model_type = "llama_bidirec"


class Model(LlamaModel):
    config_class = Config

    def forward(self, input_ids, attention_mask, **kwargs):
        length = input_ids.shape[1]
        seen = attention_mask[:, None, None, :].bool().expand(-1, 1, length, -1)
        return super().forward(input_ids=input_ids, attention_mask=seen, use_cache=False)
"""
# In a process that never imports this project.
LOAD = """
import json, sys, torch
from transformers import AutoModel, AutoTokenizer
from sentence_transformers import SentenceTransformer
path, texts = sys.argv[1], json.loads(sys.argv[2])
model = AutoModel.from_pretrained(path, trust_remote_code=True, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
rows = []
for text in texts:
    ids = tokenizer("passage: " + text, return_tensors="pt")
    hidden = model(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state[0]
    rows.append(torch.nn.functional.normalize(hidden.mean(0), dim=0).tolist())
other = SentenceTransformer(path, device="cpu", trust_remote_code=True, model_kwargs={"dtype": torch.float32})
print(json.dumps({"transformers": rows, "sentence-transformers": other.encode_document(texts).tolist()}))
"""


def edit(path: Path, **changes: Any) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(values | changes), encoding="utf-8")


@pytest.fixture
def published(small_config: EncoderConfig, tmp_path: Path) -> Path:
    """A bidirectional Llama as NVIDIA publishes them: own code, a licence, settings that only others read."""
    torch.manual_seed(0)
    tokenizer = load_base(small_config).tokenizer
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaBidirectionalModel(LlamaBidirectionalConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes))
    directory = tmp_path / "published"
    save_checkpoint(Encoder(model, tokenizer, EncoderConfig()), directory)
    (directory / "encoder.json").unlink()
    (directory / "modeling_own.py").write_text(CODE, encoding="utf-8")
    (directory / "LICENSE").write_text("Do what you like.\n", encoding="utf-8")
    auto_map = {"AutoConfig": "modeling_own.Config", "AutoModel": "modeling_own.Model"}
    edit(directory / "config.json", auto_map=auto_map, pooling="avg", architectures=["LlamaBidirectionalModel"])
    prompts = {"query": "query: ", "document": "passage: ", "clustering": "group: "}
    edit(directory / "config_sentence_transformers.json", prompts=prompts, __version__={"pytorch": "2.1"})
    return directory


def config_of(directory: Path, **changes: Any) -> EncoderConfig:
    return EncoderConfig.model_validate({"base_model": str(directory), **changes})


def test_every_file_of_the_original_is_kept(published: Path, tmp_path: Path) -> None:
    encoder = load_base(config_of(published))
    with torch.no_grad():
        encoder.backbone.norm.weight += 0.1
    save_checkpoint(encoder, tmp_path / "checkpoint")
    before = {p.relative_to(published): p.read_bytes() for p in published.rglob("*") if p.is_file()}
    after = {p: (tmp_path / "checkpoint" / p).read_bytes() for p in before}
    assert [str(path) for path in before if before[path] != after[path]] == ["model.safetensors"]
    weights, original = (load_file(place / "model.safetensors") for place in (tmp_path / "checkpoint", published))
    assert weights.keys() == original.keys()
    assert [name for name in weights if not torch.equal(weights[name], original[name])] == ["norm.weight"]


def test_what_the_settings_say_otherwise_is_changed_and_nothing_else(published: Path, tmp_path: Path) -> None:
    config = config_of(published, pooling="cls", query_prefix="ask: ", passage_max_length=64, l2_normalize=False)
    encoder = load_base(config, dtype=torch.bfloat16)
    save_checkpoint(encoder, tmp_path)
    told = json.loads((tmp_path / "config_sentence_transformers.json").read_text())
    assert told["prompts"] == {"query": "ask: ", "document": "passage: ", "clustering": "group: "}
    assert told["__version__"] == {"pytorch": "2.1"}
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept.pop("dtype") == "bfloat16"
    original = json.loads((published / "config.json").read_text())
    del original["dtype"]
    assert kept == original
    other = SentenceTransformer(str(tmp_path), device="cpu", model_kwargs={"dtype": torch.float32})
    expected = load_checkpoint(tmp_path, dtype=torch.float32).encode(TEXTS, "query")
    np.testing.assert_allclose(other.encode_query(TEXTS), expected, atol=1e-5)


def test_transformers_and_sentence_transformers_load_it_by_the_originals_own_code(
    published: Path, tmp_path: Path
) -> None:
    encoder = load_base(config_of(published))
    save_checkpoint(encoder, tmp_path / "checkpoint")
    argv = [sys.executable, "-c", LOAD, str(tmp_path / "checkpoint"), json.dumps(TEXTS)]
    clean = {**os.environ, "PYTHONPATH": "", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    answer = subprocess.run(argv, env=clean, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    for vectors in json.loads(answer.splitlines()[-1]).values():
        np.testing.assert_allclose(vectors, encoder.encode(TEXTS, "passage"), atol=1e-5)


@pytest.fixture
def foreign(published: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of a type that nobody but its own code knows; running that code leaves a trace."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    code = CODE.replace("llama_bidirec", "own_llama") + f"\nopen({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (published / "modeling_own.py").write_text(code, encoding="utf-8")
    edit(published / "config.json", model_type="own_llama")
    return published


def allowed(directory: Path, **changes: Any) -> EncoderConfig:
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.glob("*.py")}
    given = {"trust_remote_code": True, "base_model_revision": "a" * 40, "remote_code_sha256": hashes}
    return config_of(directory, **{**given, **changes})


def test_reviewed_code_runs_on_the_padded_path_and_travels_with_the_checkpoint(foreign: Path, tmp_path: Path) -> None:
    encoder = load_base(allowed(foreign))
    assert type(encoder.backbone).__name__ == "Model"
    save_checkpoint(encoder, tmp_path / "checkpoint")
    again = load_checkpoint(tmp_path / "checkpoint")
    np.testing.assert_array_equal(again.encode(TEXTS, "query"), encoder.encode(TEXTS, "query"))


def changed(directory: Path) -> EncoderConfig:
    config = allowed(directory)
    with (directory / "modeling_own.py").open("a") as file:
        file.write("# harmless\n")
    return config


def one_more_file(directory: Path) -> EncoderConfig:
    config = allowed(directory)
    (directory / "helper.py").write_text("x = 1\n")
    return config


def in_a_folder(directory: Path) -> EncoderConfig:
    config = allowed(directory)
    (directory / "inside").mkdir()
    (directory / "inside" / "helper.py").write_text("x = 1\n")
    return config


def of_another_repository(directory: Path) -> EncoderConfig:
    edit(directory / "config.json", auto_map={"AutoModel": "someone/else--modeling.Model"})
    return allowed(directory)


def not_allowed(directory: Path) -> EncoderConfig:
    return config_of(directory)


@pytest.mark.parametrize(
    ("prepare", "says"),
    [
        (changed, "modeling_own.py has sha256 .* remote_code_sha256 wants"),
        (one_more_file, "helper.py has sha256 .* remote_code_sha256 omits it"),
        (in_a_folder, "inside/helper.py has sha256"),
        (of_another_repository, "code from another repository"),
        (not_allowed, "needs its own code: review it"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_any_other_code_is_refused_before_it_runs(foreign: Path, tmp_path: Path, prepare: Any, says: str) -> None:
    config = prepare(foreign)
    with pytest.raises(InputError, match=says):
        load_base(config)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("missing", ["base_model_revision", "remote_code_sha256"])
def test_remote_code_needs_both_pins(foreign: Path, missing: str) -> None:
    values = allowed(foreign).model_dump(exclude={missing})
    with pytest.raises(ValueError, match=missing):
        EncoderConfig.model_validate(values)


def test_a_model_with_a_layer_that_only_sentence_transformers_computes_is_refused(published: Path) -> None:
    modules = json.loads((published / "modules.json").read_text())
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    (published / "modules.json").write_text(json.dumps([*modules[:2], dense]))
    with pytest.raises(InputError, match="module Dense"):
        load_base(config_of(published))
