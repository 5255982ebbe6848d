"""A saved encoder is the same one again, in transformers and sentence-transformers too. What is none is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel

from components.core.encoder.bidirectional import LlamaBidirectionalConfig, LlamaBidirectionalModel
from components.core.encoder.checkpoint import load_base, load_checkpoint, save_checkpoint
from components.core.encoder.config import EncoderConfig, base_model_directory
from components.core.encoder.model import Encoder
from components.core.errors import InputError
from components.recipe.profiles import profile

TEXTS = ["How long is the warranty?", "Loosen the screw, then press the valve down.", "valve " * 200]
FLOAT_ERROR = 2e-6


@pytest.fixture(scope="module")
def base(small_config: EncoderConfig) -> Encoder:
    return load_base(small_config)


@pytest.fixture(scope="module")
def saved(base: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("saved") / "checkpoint"
    save_checkpoint(base, directory)
    return directory


@pytest.fixture(scope="module")
def llama(base: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small bidirectional Llama with prefixes."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    architecture = LlamaBidirectionalConfig(vocab_size=len(base.tokenizer), num_key_value_heads=2, **sizes)
    directory = tmp_path_factory.mktemp("llama")
    model = LlamaBidirectionalModel(architecture)
    save_checkpoint(Encoder(model, base.tokenizer, EncoderConfig(passage_max_length=64)), directory)
    return directory


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A checkpoint to break."""
    return Path(shutil.copytree(saved, tmp_path / "checkpoint"))


def test_the_demo_model_is_the_pinned_one(small_config: EncoderConfig) -> None:
    assert small_config.base_model_sha256 == profile("small")["base_model_sha256"]
    other = small_config.model_copy(update={"base_model_sha256": "0" * 64})
    with pytest.raises(InputError, match="not the pinned model"):
        load_base(other)


def test_weights_and_settings_survive_save_and_load(base: Encoder, saved: Path) -> None:
    again = load_checkpoint(saved)
    assert again.config == base.config
    weights = again.backbone.state_dict()
    assert weights.keys() == base.backbone.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in base.backbone.state_dict().items())
    np.testing.assert_array_equal(again.encode(TEXTS, "query"), base.encode(TEXTS, "query"))


def test_saving_twice_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    save_checkpoint(load_checkpoint(saved), tmp_path / "again")
    first = {path.relative_to(saved): path.read_bytes() for path in saved.rglob("*") if path.is_file()}
    second = {p.relative_to(tmp_path / "again"): p.read_bytes() for p in (tmp_path / "again").rglob("*") if p.is_file()}
    assert first.keys() == second.keys()
    assert [str(name) for name in first if first[name] != second[name]] == []


def test_weights_are_safetensors_under_the_names_of_the_base_model(base: Encoder, saved: Path) -> None:
    found = load_file(saved / "model.safetensors")
    published = load_file(Path(base_model_directory(base.config)) / "model.safetensors")
    for name, value in found.items():
        if name in published:
            assert torch.equal(value, published[name]), name
    assert not published.keys() - found.keys() - {"embeddings.position_ids"}
    assert not list(saved.rglob("*.bin"))


def test_llama_is_stored_as_the_type_that_nvidia_publishes(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    assert config["model_type"] == "llama_bidirec"
    names = set(load_file(llama / "model.safetensors"))
    assert {"embed_tokens.weight", "layers.0.self_attn.q_proj.weight", "norm.weight"} <= names


def test_transformers_loads_the_weights(base: Encoder, saved: Path) -> None:
    model, loading = AutoModel.from_pretrained(saved, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert all(torch.equal(model.state_dict()[n], v) for n, v in base.backbone.state_dict().items())


@pytest.mark.parametrize("pooling", ["avg", "cls", "last"])
@pytest.mark.parametrize("unit", [True, False], ids=["length 1", "as they are"])
def test_sentence_transformers_gives_the_same_vectors(base: Encoder, tmp_path: Path, pooling: str, unit: bool) -> None:
    changes = {"pooling": pooling, "l2_normalize": unit, "query_prefix": "ask: ", "passage_prefix": "read: "}
    encoder = Encoder(
        base.backbone, base.tokenizer, base.config.model_copy(update={**changes, "query_max_length": 128})
    )
    save_checkpoint(encoder, tmp_path)
    other = SentenceTransformer(str(tmp_path), device="cpu")
    for found, kind in ((other.encode_query(TEXTS), "query"), (other.encode_document(TEXTS), "passage")):
        expected = encoder.encode(TEXTS, kind)
        np.testing.assert_allclose(found, expected, atol=FLOAT_ERROR * np.abs(expected).max())
    assert other.similarity_fn_name == ("cosine" if unit else "dot")


def test_sentence_transformers_loads_bidirectional_llama(llama: Path) -> None:
    encoder = load_checkpoint(llama, dtype=torch.float32)
    other = SentenceTransformer(str(llama), device="cpu", model_kwargs={"dtype": torch.float32})
    np.testing.assert_allclose(other.encode_document(TEXTS), encoder.encode(TEXTS, "passage"), atol=FLOAT_ERROR)


def without_a_weight(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    del weights["encoder.layer.3.output.dense.weight"]
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def torn(directory: Path) -> None:
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def garbage(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"<html>502 Bad Gateway</html>" * 10)


def pickled(directory: Path) -> None:
    torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
    (directory / "model.safetensors").unlink()


def without_tokenizer(directory: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        (directory / name).unlink(missing_ok=True)


def without_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def without_encoder(directory: Path) -> None:
    (directory / "encoder.json").unlink()


def encoder_of_another_release(directory: Path) -> None:
    values = json.loads((directory / "encoder.json").read_text())
    (directory / "encoder.json").write_text(json.dumps({**values, "poling": "avg"}))


def of_unknown_type(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "model_type": "bert_of_tomorrow"}))


def with_code_of_its_own(directory: Path) -> None:
    config = json.loads((directory / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "own.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (without_a_weight, "encoder.layer.3.output.dense.weight"),
    (torn, "cannot be loaded"),
    (garbage, "cannot be loaded"),
    (pickled, "safetensors"),
    (without_tokenizer, "tokenizer"),
    (without_config, "no config.json"),
    (without_encoder, "no encoder.json"),
    (encoder_of_another_release, "poling.*pooling"),
    (of_unknown_type, "bert_of_tomorrow"),
    (with_code_of_its_own, "trust_remote_code"),
]


@pytest.mark.parametrize(("harm", "says"), BROKEN, ids=[harm.__name__ for harm, _ in BROKEN])
def test_what_is_no_checkpoint_is_refused_in_one_line(
    copied: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], None], says: str
) -> None:
    monkeypatch.chdir(copied.parent)
    harm(copied)
    with pytest.raises(InputError, match=says) as refused:
        load_checkpoint(copied)
    assert "\n" not in str(refused.value)
    assert str(copied) in str(refused.value)
    assert not (copied.parent / "ran").exists()


def test_an_unknown_package_is_named(small_config: EncoderConfig) -> None:
    config = small_config.model_copy(update={"base_model": "package:no_such_package/model"})
    with pytest.raises(InputError, match="package no_such_package is not installed"):
        load_base(config)
