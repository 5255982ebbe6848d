"""The contestants we did not write, set up as their users set them up."""

from __future__ import annotations

import contextlib
import importlib
import tempfile
from collections.abc import Iterator

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer
from torch import Tensor, nn
from transformers import LlamaModel, PreTrainedTokenizerBase
from transformers.models.llama import modeling_llama

from benchmarks.workload import TINY, Shape, llama, word_tokenizer


def sentence_transformer(model: LlamaModel, shape: Shape) -> SentenceTransformer:
    """sentence-transformers around ``model``; with flash_attention_2 it leaves padding out by itself."""
    attention = model.config._attn_implementation
    with tempfile.TemporaryDirectory() as directory:
        llama(TINY, torch.device("cpu"), model.dtype).save_pretrained(directory)
        word_tokenizer(shape).save_pretrained(directory)
        options = {"attn_implementation": attention, "dtype": model.dtype}
        transformer = Transformer(directory, model_kwargs=options, max_seq_length=512)
    transformer.model = model
    pooling = Pooling(shape.dimension, "mean")
    return SentenceTransformer(modules=[transformer, pooling, Normalize()], device=str(model.device))


@contextlib.contextmanager
def liger(model: LlamaModel) -> Iterator[None]:
    """liger-kernel's fused Triton kernels in ``model``; nothing of them outside the block."""
    names = ("apply_rotary_pos_emb", "LlamaRMSNorm", "LlamaMLP")
    before = {name: getattr(modeling_llama, name) for name in names}
    patch = importlib.import_module("liger_kernel.transformers").apply_liger_kernel_to_llama
    patch(rope=True, rms_norm=True, swiglu=True, cross_entropy=False, fused_linear_cross_entropy=False, model=model)
    try:
        yield
    finally:
        for name, found in before.items():
            setattr(modeling_llama, name, found)


def padded(model: LlamaModel, ids: list[list[int]], multiple: int = 1) -> Tensor:
    """Mean-pooled unit vectors, float32, of texts padded to the longest: the recipe's forward pass."""
    longest = -(-max(map(len, ids)) // multiple) * multiple
    tokens = torch.tensor([[*text, *[0] * (longest - len(text))] for text in ids]).to(model.device)
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in ids]).to(model.device)
    hidden = model(input_ids=tokens, attention_mask=mask).last_hidden_state.float()
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return nn.functional.normalize(pooled, dim=-1)


def recipe_encode(model: LlamaModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], batch_size: int) -> Tensor:
    """The recipe's evaluation: BEIR sorts by length, the model runs in float16 autocast, 4 texts at a time."""
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    vectors = torch.empty(len(texts), model.config.hidden_size)
    with torch.inference_mode(), torch.autocast(model.device.type, dtype=torch.float16):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            ids = tokenizer([texts[row] for row in rows], truncation=True, max_length=512)["input_ids"]
            vectors[rows] = padded(model, ids).cpu()
    return vectors


def flat(model: LlamaModel, ids: list[list[int]]) -> Tensor:
    """Mean-pooled unit vectors by flash attention over texts side by side: what a well-informed user writes."""
    lengths = torch.tensor([len(text) for text in ids], device=model.device)
    bounds = nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)
    tokens = torch.tensor([token for text in ids for token in text], device=model.device)
    positions = torch.cat([torch.arange(len(text)) for text in ids]).to(model.device)
    longest = max(map(len, ids))
    hidden = model(
        input_ids=tokens[None],
        position_ids=positions[None],
        cu_seq_lens_q=bounds,
        cu_seq_lens_k=bounds,
        max_length_q=longest,
        max_length_k=longest,
    ).last_hidden_state[0]
    owner = torch.repeat_interleave(torch.arange(len(ids), device=model.device), lengths)
    summed = torch.zeros(len(ids), hidden.shape[1], device=model.device).index_add(0, owner, hidden.float())
    return nn.functional.normalize(summed / lengths[:, None], dim=-1)
