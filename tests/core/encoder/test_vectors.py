"""Vectors are those that transformers gives text by text, pooled by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, LlamaModel

from components.core.encoder.bidirectional import LlamaBidirectionalConfig, LlamaBidirectionalModel
from components.core.encoder.checkpoint import load_base
from components.core.encoder.config import EncoderConfig, Kind, base_model_directory

TEXTS = [
    "How long is the warranty?",
    "Loosen the screw, then press the valve down until it clicks.",
    "",
    "Ventil öffnen: 阀门 open()",
    "pressure " * 400,
]
FLOAT_ERROR = 1e-5


@pytest.fixture(scope="module")
def directory(small_config: EncoderConfig) -> str:
    return base_model_directory(small_config)


@torch.no_grad()
def by_hand(directory: str, texts: list[str], *, prefix: str, max_length: int, pooling: str, unit: bool) -> np.ndarray:
    """One text at a time, so without padding; cut by dropping tokens before the closing one."""
    tokenizer, model = AutoTokenizer.from_pretrained(directory), AutoModel.from_pretrained(directory).eval()
    rows = []
    for text in texts:
        ids = tokenizer(prefix + text)["input_ids"]
        if len(ids) > max_length:
            ids = [*ids[: max_length - 1], tokenizer.sep_token_id]
        tokens = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()
        vector = {"avg": tokens.mean(axis=0), "cls": tokens[0], "last": tokens[-1]}[pooling]
        rows.append(vector / np.linalg.norm(vector) if unit else vector)
    return np.array(rows)


@pytest.mark.parametrize("pooling", ["avg", "cls", "last"])
@pytest.mark.parametrize("unit", [True, False], ids=["length 1", "as they are"])
def test_pooling_and_length(small_config: EncoderConfig, directory: str, pooling: str, unit: bool) -> None:
    config = small_config.model_copy(update={"pooling": pooling, "l2_normalize": unit})
    found = load_base(config).encode(TEXTS, "passage")
    expected = by_hand(directory, TEXTS, prefix="", max_length=128, pooling=pooling, unit=unit)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=FLOAT_ERROR * np.abs(expected).max())


@pytest.mark.parametrize(("kind", "prefix", "longest"), [("query", "ask: ", 9), ("passage", "read: ", 23)])
def test_prefix_and_cut_are_those_of_the_kind(
    small_config: EncoderConfig, directory: str, kind: Kind, prefix: str, longest: int
) -> None:
    lengths = {"query_max_length": 9, "passage_max_length": 23}
    prefixes = {"query_prefix": "ask: ", "passage_prefix": "read: "}
    encoder = load_base(small_config.model_copy(update={**lengths, **prefixes}))
    assert max(map(len, encoder.tokenize(TEXTS, kind))) == longest
    expected = by_hand(directory, TEXTS, prefix=prefix, max_length=longest, pooling="avg", unit=True)
    np.testing.assert_allclose(encoder.encode(TEXTS, kind), expected, atol=FLOAT_ERROR)


def test_vectors_do_not_depend_on_batches_order_or_repeats(small_config: EncoderConfig) -> None:
    encoder = load_base(small_config)
    together = encoder.encode(TEXTS, "query")
    apart = encoder.encode(TEXTS, "query", batch_tokens=1)
    np.testing.assert_allclose(apart, together, atol=FLOAT_ERROR)
    order = [4, 1, 1, 0, 3, 2, 1]
    again = encoder.encode([TEXTS[row] for row in order], "query")
    np.testing.assert_allclose(again, together[order], atol=FLOAT_ERROR)
    assert encoder.encode([], "query").shape == (0, 384)


@pytest.fixture(scope="module")
def bidirectional() -> LlamaBidirectionalModel:
    torch.manual_seed(7)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = LlamaBidirectionalConfig(vocab_size=50, num_key_value_heads=2, initializer_range=0.2, **sizes)
    return LlamaBidirectionalModel(config).eval()


@torch.no_grad()
def test_bidirectional_llama_is_llama_without_the_causal_mask(bidirectional: LlamaBidirectionalModel) -> None:
    """transformers' own LlamaModel, given a mask that lets every token see every token of its text."""
    llama = LlamaModel(bidirectional.config).eval()
    llama.load_state_dict(bidirectional.state_dict())
    ids = torch.tensor([[5, 9, 2, 40, 17], [8, 3, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    seen = mask[:, None, None, :].bool().expand(2, 1, 5, 5)
    expected = llama(input_ids=ids, attention_mask=seen, use_cache=False).last_hidden_state
    found = bidirectional(input_ids=ids, attention_mask=mask).last_hidden_state
    real = mask.bool()
    torch.testing.assert_close(found[real], expected[real], atol=FLOAT_ERROR, rtol=0)
    causal = llama(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert (causal[real] - expected[real]).abs().max() > 0.01


@torch.no_grad()
def test_bidirectional_llama_ignores_padding(bidirectional: LlamaBidirectionalModel) -> None:
    short = torch.tensor([[5, 9, 2]])
    alone = bidirectional(input_ids=short, attention_mask=torch.ones_like(short)).last_hidden_state
    padded = torch.tensor([[5, 9, 2, 11, 11, 11]])
    mask = torch.tensor([[1, 1, 1, 0, 0, 0]])
    among = bidirectional(input_ids=padded, attention_mask=mask).last_hidden_state[:, :3]
    torch.testing.assert_close(among, alone, atol=FLOAT_ERROR, rtol=0)


@torch.no_grad()
def test_bidirectional_llama_in_bfloat16_is_close_to_float32(
    bidirectional: LlamaBidirectionalModel, tmp_path: Path
) -> None:
    bidirectional.save_pretrained(tmp_path)
    half = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    ids = torch.tensor([[5, 9, 2, 40, 17], [8, 3, 0, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    exact = bidirectional(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()]
    rounded = half(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()].float()
    assert torch.nn.functional.cosine_similarity(exact, rounded, dim=-1).min() > 0.999
