"""The files of a Hugging Face directory beside the weights.

What the base model came with is kept byte for byte where it is still true: configuration, tokenizer, custom code,
licence, the files of sentence-transformers. So everything that loads the base model (transformers, vLLM, NIM,
sentence-transformers) loads a checkpoint made of it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from components.core.encoder.config import EncoderConfig
from components.core.errors import InputError

_KEPT = (".json", ".txt", ".model", ".py", ".jinja")
_KEPT_NAMES = ("LICENSE", "NOTICE", "USE_POLICY")
# Written anew for every checkpoint, or about other files than the checkpoint's.
_OWN = ("config.json", "encoder.json", "manifest.json", "modules.json", "config_sentence_transformers.json")
_INDEX = ".index.json"
_MODULES = ("Transformer", "Pooling", "Normalize")
_POOLING_KEYS = {"avg": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}
_POOLING_NAMES = {"avg": "mean", "cls": "cls", "last": "lasttoken"}


def copy_originals(source: Path, directory: Path) -> None:
    """Copy what lies beside the weights in ``source`` and does not depend on them."""
    for path in sorted(source.iterdir()):
        named = path.suffix in _KEPT or path.name.startswith(_KEPT_NAMES)
        if path.is_file() and named and path.name not in _OWN and not path.name.endswith(_INDEX):
            shutil.copyfile(path, directory / path.name)


def write_config(backbone: PreTrainedModel, source: Path | None, directory: Path) -> None:
    """``config.json`` of ``source``, told the type of the weights; what transformers wrote where there is none."""
    path = directory / "config.json"
    if source is None:
        return
    original = _read(source / "config.json")
    written = _read(path)
    kept = {**original, "dtype" if "dtype" in original else "torch_dtype": str(backbone.dtype).removeprefix("torch.")}
    # Of a model with a head for another task the encoder alone is saved.
    if not any(str(name).endswith("Model") for name in original.get("architectures") or []):
        kept["architectures"] = written["architectures"]
    _write(path, kept, source / "config.json")


def check_modules(source: Path) -> None:
    """Raise InputError when sentence-transformers would compute more than a transformer, pooling and normalisation."""
    path = source / "modules.json"
    if not path.is_file():
        return
    for module in json.loads(path.read_text(encoding="utf-8")):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind not in _MODULES:
            raise InputError(f"{path} has a module {kind}, which is not computed here: take a model without it")


def write_sentence_transformers(config: EncoderConfig, dimension: int, source: Path | None, directory: Path) -> None:
    """The files by which sentence-transformers (and vLLM) find pooling, normalisation, prefixes and length."""
    modules = _modules(config, source)
    paths = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
    _write(directory / "modules.json", modules, source and source / "modules.json")

    pooling = Path(paths["Pooling"]) / "config.json"
    original = _read(source / pooling) if source else {}
    _write(directory / pooling, _pooling(config, dimension, original), source and source / pooling)

    length = "sentence_bert_config.json"
    original = _read(source / length) if source else {}
    _write(directory / length, {**original, "max_seq_length": config.passage_max_length}, source and source / length)

    name = "config_sentence_transformers.json"
    original = _read(source / name) if source else {}
    _write(directory / name, _prompts(config, original), source and source / name)


def _modules(config: EncoderConfig, source: Path | None) -> list[dict[str, Any]]:
    """The list of ``source`` when it says the same, else our own."""
    kinds = [kind for kind in _MODULES if kind != "Normalize" or config.l2_normalize]
    if source and (source / "modules.json").is_file():
        original = json.loads((source / "modules.json").read_text(encoding="utf-8"))
        if [module["type"].rpartition(".")[2] for module in original] == kinds:
            return original
    paths = ["", "1_Pooling", "2_Normalize"]
    return [
        {"idx": number, "name": str(number), "path": paths[number], "type": f"sentence_transformers.models.{kind}"}
        for number, kind in enumerate(kinds)
    ]


def _pooling(config: EncoderConfig, dimension: int, original: dict[str, Any]) -> dict[str, Any]:
    if original.get("pooling_mode") == _POOLING_NAMES[config.pooling]:  # as sentence-transformers 6 writes it
        return original
    modes = {key: False for key in original if key.startswith("pooling_mode_")}
    modes |= {key: how == config.pooling for how, key in _POOLING_KEYS.items()}
    size = {} if "embedding_dimension" in original else {"word_embedding_dimension": dimension}
    kept = {key: value for key, value in original.items() if key != "pooling_mode"}
    return {"include_prompt": True, **kept, **size, **modes}


def _prompts(config: EncoderConfig, original: dict[str, Any]) -> dict[str, Any]:
    prompts = {"query": config.query_prefix, "document": config.passage_prefix}
    given = original.get("prompts") or {}
    similarity = "cosine" if config.l2_normalize else "dot"
    return {
        **original,
        # A model without prefixes says so by silence.
        "prompts": given if not given and not any(prompts.values()) and original else {**given, **prompts},
        "default_prompt_name": original.get("default_prompt_name"),
        "similarity_fn_name": original.get("similarity_fn_name") or similarity,
    }


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write(path: Path, content: Any, original: Path | None) -> None:
    """``content`` as JSON; the very bytes of ``original`` where they say the same."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if original is not None and original.is_file() and json.loads(original.read_text(encoding="utf-8")) == content:
        shutil.copyfile(original, path)
    else:
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
