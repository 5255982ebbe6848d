"""A model that loads in no time."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertModel

from components.core.encoder.checkpoint import load_base, save_checkpoint
from components.core.encoder.config import EncoderConfig
from components.core.encoder.model import Encoder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, small_config: EncoderConfig) -> EncoderConfig:
    """BERT with one layer of 32 dimensions and random weights; query and passage have prefixes."""
    directory = tmp_path_factory.mktemp("tiny")
    tokenizer = load_base(small_config).tokenizer
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = EncoderConfig(base_model=str(directory), query_max_length=32, passage_max_length=32)
    backbone = BertModel(BertConfig(vocab_size=len(tokenizer), **sizes), add_pooling_layer=False)
    save_checkpoint(Encoder(backbone, tokenizer, config), directory)
    return config
