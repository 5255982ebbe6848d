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
from components.finetune.gradients.gradient import in_order, loss_over_all
from components.finetune.gradients.reduction import add_up

# Tokens of one padded forward pass: a CPU gains nothing beyond its caches, a GPU wants to be filled.
FORWARD_TOKENS = {"cpu": 2048, "cuda": 32768}


class PaddedGradient:
    """Texts of like length padded to the longest, ``dtype`` by autocast.

    In-batch negatives keep the activations of all texts of a pass until memory runs out; from then on the texts are
    encoded twice, first without activations, then a few at a time with them (GradCache: Gao et al. 2021, arXiv
    2101.06983). The gradient is the same, and so are the negatives.
    """

    in_step = False

    def __init__(
        self, encoder: Encoder, config: FinetuneConfig, dtype: torch.dtype, process_group: ProcessGroup | None = None
    ) -> None:
        self.encoder, self.config, self._dtype, self._process_group = (
            encoder,
            config,
            dtype,
            process_group or ProcessGroup(),
        )
        self.queries: int | None = config.local_batch_size
        self.together = config.in_batch_negatives
        self._forward_tokens = FORWARD_TOKENS[encoder.device.type]
        self._twice = False

    def add(self, batch: Batch, share: float) -> Tensor:
        if self.config.in_batch_negatives:
            return self._add_in_batch(batch, share)
        with self._autocast():
            queries, passages = self._vectors(batch.queries), self._vectors(batch.passages)
        loss = batch.losses(queries, passages, self.config).sum() * share
        loss.backward()
        return loss.detach()

    def add_up(self) -> None:
        add_up(self.encoder.parameters(), self._process_group, self.config)

    def weights_changed(self) -> None:
        """Nothing to do: the weights that compute are those that are trained."""

    @torch.no_grad()
    def encode(self, ids: Sequence[list[int]]) -> Tensor:
        rows = self._own(ids)
        with self._autocast():
            own = self._vectors([ids[row] for row in rows]).float()
        return self._process_group.gather_rows(own, rows, len(ids))

    def discard(self) -> None:
        self.encoder.zero_grad(set_to_none=True)

    def halve(self) -> str | None:
        if not self.config.in_batch_negatives:
            if self.queries == 1:
                return None
            self.queries //= 2
            return f"{self.queries} queries"
        if not self._twice:
            self._twice = True
        elif self._forward_tokens <= max(self.config.query_max_length, self.config.passage_max_length):
            return None
        else:
            self._forward_tokens //= 2
        return f"{self._forward_tokens} tokens, each text encoded twice"

    def _add_in_batch(self, batch: Batch, share: float) -> Tensor:
        texts = batch.texts
        rows = self._own(texts)
        own_texts = [texts[row] for row in rows]

        def forward() -> Tensor:
            with torch.set_grad_enabled(not self._twice), self._autocast():
                return self._vectors(own_texts)

        own = self._process_group.run_on_all(forward)
        if self._twice:
            own.requires_grad_()
        loss = loss_over_all(batch, own, rows, self._process_group, self.config, share)
        if own.requires_grad:
            loss.backward()
        if self._twice and rows:
            self._backward(own_texts, own.grad)
        return loss.detach() / self._process_group.size

    def _backward(self, ids: Sequence[list[int]], gradient: Tensor) -> None:
        """Encode again, a few texts at a time, and hand the gradient of their vectors on."""
        for group in self._groups(ids):
            with self._autocast():
                vectors = self._forward(ids, group)
            vectors.backward(gradient[group])

    def _own(self, ids: Sequence[list[int]]) -> list[int]:
        """Rows of the texts that this rank encodes."""
        return split_evenly([len(row) for row in ids], self._process_group.size)[self._process_group.rank]

    def _vectors(self, ids: Sequence[list[int]]) -> Tensor:
        """[len(ids), d]. Texts of like length go together: padding is work too."""
        if not ids:
            return torch.zeros(0, self.encoder.dimension, device=self.encoder.device)
        groups = self._groups(ids)
        return in_order(torch.cat([self._forward(ids, group) for group in groups]), groups)

    def _groups(self, ids: Sequence[list[int]]) -> list[list[int]]:
        return batches_by_length([len(row) for row in ids], self._forward_tokens)

    def _forward(self, ids: Sequence[list[int]], group: Sequence[int]) -> Tensor:
        return self.encoder(*self.encoder.batch([ids[row] for row in group]))

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.encoder.device.type, dtype=self._dtype)
