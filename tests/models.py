"""Small models that fixtures build once per session. Importing it imports torch, so conftest.py does it on demand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel

from components.core.encoder.bidirectional import LlamaBidirectionalConfig, LlamaBidirectionalModel
from components.core.encoder.checkpoint import load_base, save_checkpoint
from components.core.encoder.config import EncoderConfig
from components.core.encoder.model import Encoder
from components.export import onnx_graph, sessions
from components.export.component import ExportConfig
from components.export.program import run as export
from tests.exported import Exported


def write_minilm(directory: Path, small_config: EncoderConfig) -> Exported:
    """Write MiniLM as fine-tuning leaves it, exported in fp32 with the probes of a BEIR folder."""
    encoder = load_base(small_config.model_copy(update={"query_max_length": 32, "passage_max_length": 64}))
    nudge(encoder, 0.05)
    save_checkpoint(encoder, directory / "checkpoint")
    return _export_as(directory, ExportConfig(num_probes=24), _write_beir(directory / "eval_data"))


def write_llama(directory: Path, small_config: EncoderConfig) -> Exported:
    """Write a tiny llama_bidirec in fp16 with prefixes, weights in a file of their own and the probes of export."""
    tokenizer = load_base(small_config).tokenizer
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    architecture = LlamaBidirectionalConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes)
    config = EncoderConfig(base_model=str(directory / "base"), query_max_length=32, passage_max_length=64)
    encoder = Encoder(LlamaBidirectionalModel(architecture), tokenizer, config).eval()
    save_checkpoint(encoder, directory / "base")
    nudge(encoder, 1.0)
    save_checkpoint(encoder, directory / "checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_graph, "EMBEDDED_LIMIT_BYTES", 0)
        return _export_as(directory, ExportConfig(num_probes=24, export_dtype="fp16", use_dimension_arg=False), None)


def write_tiny_bert(directory: Path, small_config: EncoderConfig) -> EncoderConfig:
    """Write a BERT with one layer of 32 dimensions and random weights; query and passage have prefixes."""
    tokenizer = load_base(small_config).tokenizer
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = EncoderConfig(base_model=str(directory), query_max_length=32, passage_max_length=32)
    backbone = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes), add_pooling_layer=False)
    save_checkpoint(Encoder(backbone, tokenizer, config), directory)
    return config


def write_base_and_noisy(directory: Path, small_config: EncoderConfig) -> dict[str, Path]:
    """Write MiniLM as it is, and as bad training would leave it: with noise on its weights."""
    encoder = load_base(small_config)
    save_checkpoint(encoder, directory / "base")
    torch.manual_seed(0)
    with torch.no_grad():
        for weights in encoder.backbone.encoder.parameters():
            weights += 0.03 * torch.randn_like(weights)
    save_checkpoint(encoder, directory / "noisy")
    return {"base": directory / "base", "noisy": directory / "noisy"}


def export_for_tests(directory: Path) -> Exported:
    """Export the checkpoint in ``directory`` beside it."""
    return _export_as(directory, ExportConfig(num_probes=24), None)


@torch.no_grad()
def nudge(encoder: Encoder, share: float) -> None:
    """Move each weight matrix by noise of ``share`` of its own spread."""
    torch.manual_seed(1)
    for weights in encoder.backbone.parameters():
        if weights.dim() > 1:
            weights += share * weights.std() * torch.randn_like(weights)


def _export_as(directory: Path, config: ExportConfig, eval_data: Path | None) -> Exported:
    model, bundle, checkpoint = (directory / name for name in ("model", "bundle", "checkpoint"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sessions, "SHAPES", ((1, 8), (2, 16)))
        metrics = export(config, checkpoint=checkpoint, eval_data=eval_data, exported_model=model, deploy_bundle=bundle)
    return Exported(config, checkpoint, eval_data, model, bundle, metrics)


def _write_beir(directory: Path) -> Path:
    (directory / "qrels").mkdir(parents=True)
    passages = [f"Part {n} of the manual says how to fit valve {n} and test it." for n in range(30)]
    queries = [f"how to fit valve {n}?" for n in range(30)]
    for name, texts in (("corpus", passages), ("queries", queries)):
        lines = (json.dumps({"_id": f"{name}{n}", "text": text}) for n, text in enumerate(texts))
        (directory / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    judged = "".join(f"queries{n}\tcorpus{n}\t1\n" for n in range(30))
    (directory / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged, encoding="utf-8")
    return directory
