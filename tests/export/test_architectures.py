"""The exporter on the profiles' own architectures, with random weights, against transformers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, BertConfig, BertModel, Ministral3Config, PreTrainedModel

from components.core.encoder.bidirectional import LlamaBidirectionalConfig, LlamaBidirectionalModel
from components.core.encoder.checkpoint import load_base, load_checkpoint, save_checkpoint
from components.core.encoder.config import EncoderConfig
from components.core.encoder.model import Encoder
from components.export.mixed_precision import convert_to_half
from components.export.onnx_graph import write_onnx
from components.export.sessions import OnnxSession

pytestmark = pytest.mark.slow

_SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}


def backbone(name: str, vocabulary: int) -> PreTrainedModel:
    torch.manual_seed(0)
    if name == "bert":
        return BertModel(BertConfig(vocab_size=vocabulary, max_position_embeddings=64, **_SIZES))
    if name == "llama":
        return LlamaBidirectionalModel(LlamaBidirectionalConfig(vocab_size=vocabulary, num_key_value_heads=2, **_SIZES))
    # Nemotron-3-Embed's: more heads than the hidden size has room for.
    config = Ministral3Config(
        vocab_size=vocabulary, num_key_value_heads=2, head_dim=24, is_causal=False, max_position_embeddings=64, **_SIZES
    )
    return AutoModel.from_config(config)


@pytest.mark.parametrize(
    ("name", "half"), [("bert", True), ("llama", False), ("ministral", False), ("ministral", True)]
)
def test_the_graph_is_the_models(name: str, half: bool, small_config: EncoderConfig, tmp_path: Path) -> None:
    tokenizer = load_base(small_config).tokenizer
    config = EncoderConfig(base_model=str(tmp_path / "base"), query_max_length=32, passage_max_length=48)
    save_checkpoint(Encoder(backbone(name, len(tokenizer)).eval(), tokenizer, config), tmp_path / "base")
    encoder = load_checkpoint(tmp_path / "base", dtype=torch.float32)
    texts = ["one", "how to fit the valve of the pump", "many words " * 12]
    ids = encoder.tokenize(texts, "passage")
    expected = [_alone(AutoModel.from_pretrained(tmp_path / "base", dtype=torch.float32).eval(), row) for row in ids]
    padded, mask = (tensor.numpy() for tensor in encoder.batch(ids))
    if half:
        convert_to_half(encoder.backbone, norms_in_fp32=True, patterns=[])
    session = OnnxSession(write_onnx(encoder, tmp_path, opset=20, dimensions=True), encoder.dimension)
    found = session.embed(padded, mask)
    np.testing.assert_allclose(found, np.stack(expected), atol=5e-3 if half else 2e-6)
    assert session.embed(padded[:1], mask[:1], dimension=16).shape == (1, 16)


@torch.inference_mode()
def _alone(model: PreTrainedModel, ids: list[int]) -> np.ndarray:
    """The mean of one text's token vectors, without padding, of length 1."""
    tokens = torch.tensor([ids])
    hidden = model(input_ids=tokens, attention_mask=torch.ones_like(tokens)).last_hidden_state[0]
    return torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy()
