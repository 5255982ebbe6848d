"""The gradient over packed texts, without padding: models and devices that core.encoder.packed supports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from components.core.distributed.process_group import ProcessGroup
from components.core.encoder.kernels.master_weights import ComputeCopy
from components.core.encoder.model import Encoder
from components.core.encoder.packed.encoder import PackedEncoder
from components.core.encoder.training.contrastive import contrastive_backward, encode_phase
from components.core.encoder.training.phases import plan_single_phase
from components.finetune.component import FinetuneConfig
from components.finetune.data.batch import Batch, compute_explicit_losses
from components.finetune.gradients.gradient import Gradient, split_into_chunks


class PackedGradient(Gradient):
    """Packed texts, computed by a copy of the weights in ``dtype``; with ``fp8`` its products in 8 bits.

    All ranks share the work of every batch. In-batch negatives keep what ``packed_batch_tokens`` allow of the
    activations and compute the others again.
    """

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
        super().__init__(encoder, config, process_group)
        self._capacity = config.packed_batch_tokens
        self._copy = ComputeCopy(encoder.backbone, dtype)
        backbone = cast(PreTrainedModel, self._copy.module)
        # Vectors are measured as they will be used: without 8 bits.
        self._exact_encoder = PackedEncoder(backbone, config.pooling, config.l2_normalize, compiled=compiled)
        self._encoder = self._exact_encoder
        if fp8:
            self._encoder = PackedEncoder(backbone, config.pooling, config.l2_normalize, compiled=compiled, fp8=True)

    def _split_into_passes(self, batch: Batch) -> list[Sequence[int]]:
        queries = range(len(batch.queries))
        return split_into_chunks(
            queries, self.config.local_batch_size if self.config.in_batch_negatives else len(queries)
        )

    def backward_pass(self, batch: Batch, scale: float) -> Tensor:
        """Add the gradient of ``scale`` times the sum of the losses; return this rank's part of it."""
        texts, first = batch.texts, len(batch.queries)

        def compute_explicit_loss(vectors: Tensor) -> Tensor:
            """Return the loss of ``vectors`` [some queries, 1 + passages of a query, d]."""
            return compute_explicit_losses(vectors[:, 0], vectors[:, 1:], self.config).sum() * scale

        def compute_in_batch_loss(vectors: Tensor) -> Tensor:
            """Return the loss of ``vectors`` [all texts, 1, d]."""
            return batch.compute_losses(vectors[:first, 0], vectors[first:, 0], self.config).sum() * scale

        in_batch = self.config.in_batch_negatives
        return contrastive_backward(
            self._encoder,
            texts,
            _make_single_groups(texts) if in_batch else batch.groups,
            compute_in_batch_loss if in_batch else compute_explicit_loss,
            capacity=self._capacity,
            needs_all_groups=in_batch,
            process_group=self._process_group,
        )

    @torch.no_grad()
    def encode(self, ids: Sequence[list[int]]) -> Tensor:
        """Return the vectors of token ids, float32 [len(ids), d], on all ranks."""
        phase = plan_single_phase(
            _make_single_groups(ids),
            [len(text) for text in ids],
            capacity=self._capacity,
            layers=self._exact_encoder.layers,
            num_ranks=self._process_group.size,
        )
        return encode_phase(self._exact_encoder, ids, phase, self._process_group)

    def halve_passes(self) -> str | None:
        """Halve the tokens of a pass; None below the length of a text, where there is nothing left to divide."""
        if self._capacity <= max(self.config.query_max_length, self.config.passage_max_length):
            return None
        self._capacity //= 2
        return f"{self._capacity} tokens"

    def refresh_weights(self) -> None:
        """Copy the trained weights to the copy that computes."""
        self._copy.refresh()

    def discard(self) -> None:
        """Drop the gradients of the trained weights and of the copy."""
        super().discard()
        self._copy.module.zero_grad(set_to_none=True)


def _make_single_groups(ids: Sequence[list[int]]) -> list[list[int]]:
    """Return a group of its own for each text."""
    return [[row] for row in range(len(ids))]
