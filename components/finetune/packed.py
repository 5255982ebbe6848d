"""The gradient over packed texts, without padding: models and devices that core.encoder.packed supports."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from components.core.encoder.contrastive import backward
from components.core.encoder.master import ComputeCopy
from components.core.encoder.model import Encoder
from components.core.encoder.packed import PackedEncoder
from components.core.encoder.packing import balanced, pack, spread
from components.core.encoder.schedule import schedule
from components.core.ranks import Ranks
from components.finetune.batch import Batch, own_passages_losses
from components.finetune.component import FinetuneConfig
from components.finetune.gradient import agreed, in_order, loss_over_all
from components.finetune.reduction import add_up


class PackedGradient:
    """Texts side by side in bins, computed by a copy of the weights in ``dtype``; with ``fp8`` its products in 8 bits.

    In-batch negatives keep what ``packed_batch_tokens`` allow of the activations and compute the others again.
    """

    in_step = False

    def __init__(
        self,
        encoder: Encoder,
        config: FinetuneConfig,
        dtype: torch.dtype,
        ranks: Ranks | None = None,
        *,
        compiled: bool,
        fp8: bool = False,
    ) -> None:
        self.config, self._ranks = config, ranks or Ranks()
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

        return backward(self._packed, batch.texts, batch.groups, loss_of, capacity=self._tokens)

    def add_up(self) -> None:
        add_up(self._trained.parameters(), self._ranks, self.config)

    def weights_changed(self) -> None:
        self._copy.refresh()

    @torch.no_grad()
    def encode(self, ids: Sequence[list[int]]) -> Tensor:
        rows = self._own(ids)
        groups = balanced([len(ids[row]) for row in rows], self._tokens) if rows else []
        parts = [self._exact(pack(ids, [rows[place] for place in group], self._exact.device)) for group in groups]
        own = in_order(torch.cat(parts), groups) if parts else self._nothing()
        return self._ranks.rows_of_all(own, rows, len(ids))

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
        texts = batch.texts
        rows = self._own(texts)

        def forward() -> Tensor:
            return self._vectors(texts, rows) if rows else self._nothing()

        own = agreed(self._ranks, forward)
        loss = loss_over_all(batch, own, rows, self._ranks, self.config, share)
        if own.requires_grad:
            loss.backward()
        return loss.detach()

    def _vectors(self, texts: Sequence[list[int]], rows: Sequence[int]) -> Tensor:
        """Vectors of ``rows``, in their order, with as many activations kept as fit."""
        lengths = [len(texts[row]) for row in rows]
        alone = [[place] for place in range(len(rows))]
        layers = self._packed.layers
        (phase,) = schedule(alone, lengths, capacity=self._tokens, layers=layers, together=True)
        parts = [
            self._packed(
                pack(texts, [rows[place] for place in group], self._packed.device),
                recompute_layers=phase.recompute_layers,
            )
            for group in phase.bins
        ]
        return in_order(torch.cat(parts), phase.bins)

    def _own(self, ids: Sequence[list[int]]) -> list[int]:
        """Rows of the texts that this rank encodes."""
        return spread([len(row) for row in ids], self._ranks.size)[self._ranks.rank]

    def _nothing(self) -> Tensor:
        return torch.zeros(0, self._trained.dimension, device=self._exact.device)
