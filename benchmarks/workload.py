"""The work every contestant does: a model of the 1B shape with random weights, texts of made-up words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaModel, PreTrainedTokenizerFast

from components.core.encoder.bidirectional import LlamaBidirectionalConfig, LlamaBidirectionalModel
from components.core.encoder.checkpoint import save_checkpoint
from components.core.encoder.config import EncoderConfig
from components.core.encoder.model import Encoder

_RESERVED = 3  # padding, unknown, beginning of text


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama; ``longest`` and ``mean`` passage length in tokens."""

    vocabulary: int
    dimension: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    shortest: int
    longest: int
    mean: int

    def flops(self, lengths: list[int]) -> float:
        """Floating-point operations of one forward pass over texts of these lengths."""
        size = self.dimension // self.heads
        attention = self.dimension * (2 * self.dimension + 2 * self.kv_heads * size)
        weights = self.layers * (attention + 3 * self.dimension * self.inner)
        return 2 * weights * sum(lengths) + 4 * self.layers * self.dimension * sum(n * n for n in lengths)


LLAMA_1B = Shape(128256, 2048, 8192, 16, 32, 8, shortest=60, longest=500, mean=215)
TINY = Shape(512, 64, 128, 2, 4, 2, shortest=6, longest=50, mean=21)


def _architecture(shape: Shape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.dimension,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "pad_token_id": 0,
    }


def llama(shape: Shape, device: torch.device, dtype: torch.dtype, attention: str = "sdpa") -> LlamaModel:
    """A bidirectional Llama with random weights, the same for every call on one kind of device."""
    config = LlamaConfig(**_architecture(shape), is_causal=False, use_cache=False)
    torch.manual_seed(0)
    with torch.device(device):
        model = LlamaModel(config)
    for layer in model.layers:
        layer.self_attn.is_causal = False
    model.set_attn_implementation(attention)
    return model.to(dtype).eval()


def write_base(shape: Shape, directory: Path) -> None:
    """A bidirectional Llama of ``shape`` with random weights, as a Hugging Face directory."""
    architecture = LlamaBidirectionalConfig(**_architecture(shape))
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        backbone = LlamaBidirectionalModel(architecture)
    config = EncoderConfig(base_model=str(directory))
    save_checkpoint(Encoder(backbone.cpu(), word_tokenizer(shape), config).eval(), directory)


def word_tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    """One word, one token: the number ``n`` is token ``n``."""
    words = {"[PAD]": 0, "[UNK]": 1, "[BOS]": 2} | {str(n): n for n in range(_RESERVED, shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")


def passages(shape: Shape, count: int, seed: int = 1) -> list[list[int]]:
    """Token ids of ``count`` passages, lengths lognormal between the shortest and the longest."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.empty(count).log_normal_(
        mean=torch.tensor(shape.mean / 1.12).log().item(), std=0.5, generator=generator
    )
    return _texts(lengths.round().clamp(shape.shortest, shape.longest).long().tolist(), shape, generator)


def queries(shape: Shape, count: int, seed: int = 2) -> list[list[int]]:
    """Token ids of ``count`` queries of 16 to 40 tokens."""
    generator = torch.Generator().manual_seed(seed)
    return _texts(torch.randint(16, 41, (count,), generator=generator).tolist(), shape, generator)


def text(ids: list[int]) -> str:
    """The text that ``word_tokenizer`` turns into ``ids``."""
    return " ".join(map(str, ids))


def _texts(lengths: list[int], shape: Shape, generator: torch.Generator) -> list[list[int]]:
    return [torch.randint(_RESERVED, shape.vocabulary, (n,), generator=generator).tolist() for n in lengths]
