"""Encoding packed texts: the same weights and the same vectors as transformers makes, without padding.

Nothing here holds weights of its own: everything runs over those of the Hugging Face model, so loading, saving and
optimizers see nothing but that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from components.core.encoder.kernels.fp8 import Rounded
from components.core.encoder.kernels.fp8 import linear as linear8
from components.core.encoder.kernels.matmul import Exact
from components.core.encoder.packed import bert as packed_bert
from components.core.encoder.packed import llama as packed_llama
from components.core.encoder.packed.packing import Bin, balanced, pack
from components.core.encoder.pooling import Pooling, pooled

# Texts tokenised at a time: seconds of work for a GPU, a fraction of one for the tokenizer.
_PIECE = 2048


def supports(backbone: PreTrainedModel) -> bool:
    """Whether ``backbone`` is of a family that ``PackedEncoder`` computes: Llama, Ministral, BERT and its like."""
    return packed_llama.supports(backbone) or packed_bert.supports(backbone)


def fast(backbone: PreTrainedModel) -> bool:
    """Whether ``backbone`` runs faster over packed texts: on a GPU, in the precision of the flash kernels."""
    weight = next(backbone.parameters())
    return weight.is_cuda and weight.dtype in (torch.bfloat16, torch.float16) and supports(backbone)


class PackedEncoder:
    """``backbone`` with pooling and normalisation, for texts packed into bins.

    ``compiled``: fuse what lies between the matrix products of BERT and its like with torch.compile; the same code
    serves all layers and all sizes of bins. Llama and Ministral have kernels of their own on a GPU and compile nothing.
    ``fp8``: the layers' matrix products in 8 bits: faster on Hopper GPUs and less exact.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        pooling: Pooling,
        l2_normalize: bool = True,
        *,
        compiled: bool = False,
        fp8: bool = False,
    ) -> None:
        self.backbone = backbone
        self.pooling = pooling
        self.l2_normalize = l2_normalize
        if packed_llama.supports(backbone):
            self._family = packed_llama.PackedLlama(backbone, Rounded() if fp8 else Exact())
        else:
            linear = linear8 if fp8 else nn.functional.linear
            self._family = packed_bert.PackedBert(backbone, linear, compiled=compiled)

    @property
    def layers(self) -> int:
        """Number of transformer layers."""
        return self.backbone.config.num_hidden_layers

    @property
    def dimension(self) -> int:
        """Length of a vector."""
        return self.backbone.config.hidden_size

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def __call__(self, texts: Bin, *, recompute_layers: int = 0) -> Tensor:
        """Vectors of the bin's texts: float32 [texts, dimension].

        The first ``recompute_layers`` layers keep only their input for the backward pass and compute the rest again.
        """
        hidden, positions = self._family.embed(texts)
        for number, weights in enumerate(self._family.weights()):
            arguments = (hidden, positions, texts, weights)
            if number < recompute_layers and torch.is_grad_enabled():
                hidden = checkpoint(self._family.layer, *arguments, use_reentrant=False, preserve_rng_state=False)
            else:
                hidden = self._family.layer(*arguments)
        vectors = pooled(self._family.finish(hidden), texts.bounds, self.pooling)
        return nn.functional.normalize(vectors, dim=-1) if self.l2_normalize else vectors

    def stream(
        self, texts: Sequence[str], tokenize: Callable[[Sequence[str]], list[list[int]]], capacity: int
    ) -> Iterator[tuple[list[int], np.ndarray]]:
        """Vectors of ``texts``, piece by piece: which rows these are, float32 [rows, dimension].

        ``tokenize`` gives the token ids of some texts, in a thread of its own; bins hold about ``capacity`` tokens. A
        GPU computes one piece while the next is packed and the one after it tokenised.
        """
        running: tuple[list[int], Callable[[], np.ndarray]] | None = None
        starts = range(0, len(texts), _PIECE)
        pieces = (texts[start : start + _PIECE] for start in starts)
        for start, ids in zip(starts, _ahead(tokenize, pieces), strict=True):
            groups = balanced([len(text) for text in ids], capacity)
            with torch.inference_mode():
                fetch = _fetch(torch.cat([self(pack(ids, rows, self.device)) for rows in groups]))
            if running:
                yield running[0], running[1]()
            running = [start + row for rows in groups for row in rows], fetch
        if running:
            yield running[0], running[1]()


def _ahead(function: Callable[[Any], Any], values: Iterable[Any]) -> Iterator[Any]:
    """``function`` of each value; the next one is computed in a thread meanwhile."""
    with ThreadPoolExecutor(1) as thread:
        computing: Future[Any] | None = None
        for value in values:
            following = thread.submit(function, value)
            if computing:
                yield computing.result()
            computing = following
        if computing:
            yield computing.result()


def _fetch(vectors: Tensor) -> Callable[[], np.ndarray]:
    """Start copying ``vectors`` to the host; the function returned waits for it."""
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
