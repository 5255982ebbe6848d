"""The gradient over packed texts, without padding: models and devices that core.encoder.packed supports."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from components.core.distributed.process_group import ProcessGroup
from components.core.encoder.kernels.master_weights import ComputeCopy
from components.core.encoder.model import Encoder
from components.core.encoder.packed.encoder import PackedEncoder
from components.core.encoder.training.contrastive import contrastive_backward, encode_phase
from components.core.encoder.training.phases import plan_single_phase
from components.finetune.component import FinetuneConfig
from components.finetune.data.batch import Batch, own_passages_losses
from components.finetune.gradients.reduction import add_up


class PackedGradient:
    """Texts side by side in bins, computed by a copy of the weights in ``dtype``; with ``fp8`` its products in 8 bits.

    In-batch negatives keep what ``packed_batch_tokens`` allow of the activations and compute the others again.
    """

    together = True
    in_step = False

    def __init__(
        self,
        encoder: Encoder,
        config: FinetuneConfig,
        dtype: torch.dtype,
        process_group: ProcessGroup | None = None,
        *,
        compiled: bool,
        fp8: bool = False,
    ) -> None:
        self.config, self._process_group = config, process_group or ProcessGroup()
        self.queries = config.local_batch_size if config.in_batch_negatives else None
        self._trained, self._tokens = encoder, config.packed_batch_tokens
        self._copy = ComputeCopy(encoder.backbone, dtype)
        pooled = (self._copy.module, config.pooling, config.l2_normalize)
        # Vectors are measured as they will be used: without 8 bits.
        self._exact = PackedEncoder(*pooled, compiled=compiled)
        self._packed = PackedEncoder(*pooled, compiled=compiled, fp8=True) if fp8 else self._exact

    def add(self, batch: Batch, share: float) -> Tensor:
        if self.config.in_batch_negatives:
            return self._add_in_batch(batch, share)

        def loss_of(vectors: Tensor) -> Tensor:
            """Of ``vectors`` [some queries, 1 + passages of a query, d]."""
            return own_passages_losses(vectors[:, 0], vectors[:, 1:], self.config).sum() * share

        return contrastive_backward(
            self._packed, batch.texts, batch.groups, loss_of, capacity=self._tokens, process_group=self._process_group
        )

    def add_up(self) -> None:
        add_up(self._trained.parameters(), self._process_group, self.config)

    def weights_changed(self) -> None:
        self._copy.refresh()

    @torch.no_grad()
    def encode(self, ids: Sequence[list[int]]) -> Tensor:
        lengths = [len(text) for text in ids]
        limits = {"capacity": self._tokens, "layers": self._exact.layers, "num_ranks": self._process_group.size}
        return encode_phase(self._exact, ids, plan_single_phase(_alone(ids), lengths, **limits), self._process_group)

    def discard(self) -> None:
        self._trained.zero_grad(set_to_none=True)
        self._copy.module.zero_grad(set_to_none=True)

    def halve(self) -> str | None:
        # Below the length of a text there is nothing left to divide.
        if self._tokens <= max(self.config.query_max_length, self.config.passage_max_length):
            return None
        self._tokens //= 2
        return f"{self._tokens} tokens"

    def _add_in_batch(self, batch: Batch, share: float) -> Tensor:
        texts, first = batch.texts, len(batch.queries)

        def loss_of(vectors: Tensor) -> Tensor:
            """Of ``vectors`` [texts, 1, d]."""
            return batch.losses(vectors[:first, 0], vectors[first:, 0], self.config).sum() * share

        return contrastive_backward(
            self._packed,
            texts,
            _alone(texts),
            loss_of,
            capacity=self._tokens,
            needs_all_groups=True,
            process_group=self._process_group,
        )


def _alone(ids: Sequence[list[int]]) -> list[list[int]]:
    """Each text as a group of its own."""
    return [[row] for row in range(len(ids))]
