"""The gradient over padded texts: any model, any device."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor

from components.core.distributed.process_group import ProcessGroup
from components.core.encoder.model import Encoder, batches_by_length
from components.core.encoder.packed.packing import split_evenly
from components.finetune.component import FinetuneConfig
from components.finetune.data.batch import Batch
from components.finetune.gradients.gradient import Gradient, compute_in_batch_loss, restore_order, split_into_chunks
from components.finetune.gradients.reduction import select_local_queries

# Tokens of one padded forward pass: a CPU gains nothing beyond its caches, a GPU wants to be filled.
FORWARD_TOKENS = {"cpu": 2048, "cuda": 32768}


class PaddedGradient(Gradient):
    """Texts of like length padded to the longest, computed in ``dtype`` by autocast.

    Every rank computes queries of its own; with in-batch negatives all ranks share the texts of every batch. In-batch
    negatives keep the activations of all texts of a pass until memory runs out; from then on the texts are encoded
    twice, first without activations, then a few at a time with them (GradCache: Gao et al. 2021, arXiv 2101.06983). The
    gradient is the same, and so are the negatives.
    """

    def __init__(
        self,
        encoder: Encoder,
        config: FinetuneConfig,
        dtype: torch.dtype,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(encoder, config, process_group)
        self._dtype = dtype
        self._queries_per_pass = config.local_batch_size
        self._forward_tokens = FORWARD_TOKENS[encoder.device.type]
        self._encodes_twice = False

    def _split_into_passes(self, batch: Batch) -> list[Sequence[int]]:
        shared = self.config.in_batch_negatives
        queries = range(len(batch.queries)) if shared else select_local_queries(batch, self._process_group)
        return split_into_chunks(queries, self._queries_per_pass)

    def backward_pass(self, batch: Batch, scale: float) -> Tensor:
        """Add the gradient of ``scale`` times the sum of the losses; return this rank's part of it."""
        if self.config.in_batch_negatives:
            return self._backward_in_batch(batch, scale)
        with self._autocast():
            queries, passages = self._encode_rows(batch.queries), self._encode_rows(batch.passages)
        loss = batch.compute_losses(queries, passages, self.config).sum() * scale
        loss.backward()
        return loss.detach()

    @torch.no_grad()
    def encode(self, ids: Sequence[list[int]]) -> Tensor:
        """Return the vectors of token ids, float32 [len(ids), d], on all ranks."""
        rows = self._select_local_texts(ids)
        with self._autocast():
            vectors = self._encode_rows([ids[row] for row in rows]).float()
        return self._process_group.gather_rows(vectors, rows, len(ids))

    def halve_passes(self) -> str | None:
        """Halve the queries of a pass; with in-batch negatives encode twice, then halve the tokens of a forward."""
        if not self.config.in_batch_negatives:
            if self._queries_per_pass == 1:
                return None
            self._queries_per_pass //= 2
            return f"{self._queries_per_pass} queries"
        if not self._encodes_twice:
            self._encodes_twice = True
        elif self._forward_tokens <= max(self.config.query_max_length, self.config.passage_max_length):
            return None
        else:
            self._forward_tokens //= 2
        return f"{self._forward_tokens} tokens, each text encoded twice"

    def refresh_weights(self) -> None:
        """Do nothing: the weights that compute are those that are trained."""

    def _backward_in_batch(self, batch: Batch, scale: float) -> Tensor:
        texts = batch.texts
        rows = self._select_local_texts(texts)
        local_texts = [texts[row] for row in rows]

        def encode_local_texts() -> Tensor:
            with torch.set_grad_enabled(not self._encodes_twice), self._autocast():
                return self._encode_rows(local_texts)

        vectors = self._process_group.run_on_all(encode_local_texts)
        if self._encodes_twice:
            vectors.requires_grad_()
        loss = compute_in_batch_loss(batch, vectors, rows, self._process_group, self.config, scale)
        if vectors.requires_grad:
            loss.backward()
        if self._encodes_twice and rows:
            assert vectors.grad is not None
            self._backward_again(local_texts, vectors.grad)
        return loss.detach() / self._process_group.size

    def _backward_again(self, ids: Sequence[list[int]], grad_vectors: Tensor) -> None:
        """Encode the texts again, a few at a time, and pass on the gradient of their vectors, [len(ids), d]."""
        for group in self._group_by_length(ids):
            with self._autocast():
                vectors = self._forward(ids, group)
            vectors.backward(grad_vectors[group])

    def _select_local_texts(self, ids: Sequence[list[int]]) -> list[int]:
        """Return the rows of the texts that this rank encodes."""
        return split_evenly([len(row) for row in ids], self._process_group.size)[self._process_group.rank]

    def _encode_rows(self, ids: Sequence[list[int]]) -> Tensor:
        """Return vectors [len(ids), d]. Texts of like length are padded together: padding is work too."""
        if not ids:
            return torch.zeros(0, self.encoder.dimension, device=self.encoder.device)
        groups = self._group_by_length(ids)
        return restore_order(torch.cat([self._forward(ids, group) for group in groups]), groups)

    def _group_by_length(self, ids: Sequence[list[int]]) -> list[list[int]]:
        return batches_by_length([len(row) for row in ids], self._forward_tokens)

    def _forward(self, ids: Sequence[list[int]], group: Sequence[int]) -> Tensor:
        vectors: Tensor = self.encoder(*self.encoder.batch([ids[row] for row in group]))
        return vectors

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.encoder.device.type, dtype=self._dtype)
