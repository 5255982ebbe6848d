"""Encoder of packed texts: the same weights and the same vectors as transformers computes, without padding.

It has no weights of its own: everything runs on those of the Hugging Face model, so loading, saving and optimizers see
nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from components.core.encoder.kernels.attention import AttentionBackend
from components.core.encoder.kernels.fp8 import Fp8AutogradMatmul, Fp8Matmul
from components.core.encoder.kernels.matmul import Bf16Matmul, Matmul
from components.core.encoder.packed import bert, llama
from components.core.encoder.packed.packing import PackedBatch, balance_bins, pack
from components.core.encoder.pooling import Pooling, pool_packed

Item = TypeVar("Item")
Mapped = TypeVar("Mapped")

# Texts tokenised at a time: seconds of work for a GPU, a fraction of one for the tokenizer.
_TEXTS_PER_CHUNK = 2048


def supports(backbone: PreTrainedModel) -> bool:
    """Return whether ``PackedEncoder`` computes the family of ``backbone``: Llama, Ministral, BERT and its like."""
    return llama.supports(backbone) or bert.supports(backbone)


def is_faster_packed(backbone: PreTrainedModel) -> bool:
    """Return whether ``backbone`` runs faster over packed texts: on a GPU, in a dtype of the flash kernels."""
    weight = next(backbone.parameters())
    return weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16) and supports(backbone)


class PackedEncoder:
    """``backbone`` with pooling and normalisation, for packed texts.

    Args:
        backbone: A model that ``supports`` accepts.
        pooling: How vectors of tokens become vectors of texts.
        l2_normalize: Scale vectors to length 1.
        compiled: Fuse what lies between the matrix products of BERT and its like with torch.compile; the same code
            serves all layers and all sizes of batches. Llama and Ministral have kernels on a GPU and compile nothing.
        fp8: Compute the layers' matrix products in 8 bits: faster on Hopper GPUs and less exact.
        attention_backend: Which implementation of FlashAttention runs.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        pooling: Pooling,
        l2_normalize: bool = True,
        *,
        compiled: bool = False,
        fp8: bool = False,
        attention_backend: AttentionBackend = "auto",
    ) -> None:
        self.backbone = backbone
        self.pooling = pooling
        self.l2_normalize = l2_normalize
        # A family takes the tables and weights that it made itself: their types differ between the two.
        self._family: Any
        matmul: Matmul
        if llama.supports(backbone):
            matmul = Fp8Matmul() if fp8 else Bf16Matmul()
            self._family = llama.PackedLlama(backbone, matmul, attention_backend=attention_backend)
        else:
            matmul = Fp8AutogradMatmul() if fp8 else Bf16Matmul()
            self._family = bert.PackedBert(backbone, matmul, compiled=compiled, attention_backend=attention_backend)

    @property
    def layers(self) -> int:
        """Return the number of transformer layers."""
        return int(self.backbone.config.num_hidden_layers)

    @property
    def dimension(self) -> int:
        """Return the length of a vector."""
        return int(self.backbone.config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Return the device of the weights."""
        return next(self.backbone.parameters()).device

    def __call__(self, batch: PackedBatch, *, recompute_layers: int = 0) -> Tensor:
        """Return the vectors of the batch's texts, float32 [texts, dimension].

        The first ``recompute_layers`` layers keep only their input for the backward pass and compute the rest again.
        """
        hidden, rotary = self._family.embed_tokens(batch)
        for number, weights in enumerate(self._family.layer_weights()):
            arguments = (hidden, rotary, batch, weights)
            if number < recompute_layers and torch.is_grad_enabled():
                hidden = checkpoint(self._family.layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = self._family.layer(*arguments)
        vectors = pool_packed(self._family.final_norm(hidden), batch.cu_seqlens, self.pooling)
        return nn.functional.normalize(vectors, dim=-1) if self.l2_normalize else vectors

    def stream(
        self, texts: Sequence[str], tokenize: Callable[[Sequence[str]], list[list[int]]], capacity: int
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Yield vectors of ``texts``, chunk by chunk: which rows these are, and float32 [rows, dimension].

        A GPU computes one chunk while the next is packed and the one after it tokenised.

        Args:
            texts: Texts with their prefixes.
            tokenize: Returns the token ids of some texts; it is called in a thread of its own.
            capacity: Tokens of a batch, about.
        """
        running: tuple[list[int], Callable[[], np.ndarray]] | None = None
        starts = range(0, len(texts), _TEXTS_PER_CHUNK)
        chunks = (texts[start : start + _TEXTS_PER_CHUNK] for start in starts)
        for start, ids in zip(starts, _map_ahead(tokenize, chunks), strict=True):
            bins = balance_bins([len(text) for text in ids], capacity)
            with torch.inference_mode():
                fetch = _start_copy_to_host(torch.cat([self(pack(ids, rows, self.device)) for rows in bins]))
            if running:
                yield running[0], running[1]()
            running = [start + row for rows in bins for row in rows], fetch
        if running:
            yield running[0], running[1]()


def _map_ahead(function: Callable[[Item], Mapped], items: Iterable[Item]) -> Iterator[Mapped]:
    """Yield ``function`` of each item; that of the next one is computed in a thread meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        computing: Future[Mapped] | None = None
        for item in items:
            following = thread.submit(function, item)
            if computing:
                yield computing.result()
            computing = following
        if computing:
            yield computing.result()


def _start_copy_to_host(vectors: Tensor) -> Callable[[], np.ndarray]:
    """Start copying ``vectors`` to the host; the returned function waits for the copy and returns it."""
    if not vectors.is_cuda:
        return vectors.numpy
    host = torch.empty(vectors.shape, dtype=vectors.dtype, pin_memory=True)
    host.copy_(vectors, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return wait
