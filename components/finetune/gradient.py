"""The gradient of a batch's loss: over packed texts where the model and the device allow it, else over padded ones."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from components.core.encoder.contrastive import backward
from components.core.encoder.master import ComputeCopy
from components.core.encoder.model import Encoder, batches_by_length
from components.core.encoder.packed import PackedEncoder, supports
from components.core.encoder.packing import balanced, pack
from components.finetune.component import FinetuneConfig
from components.finetune.loss import contrastive_loss, in_batch_loss, matryoshka

# Tokens of one padded forward pass: a CPU gains nothing beyond its caches, a GPU wants to be filled.
_FORWARD_TOKENS = {"cpu": 2048, "cuda": 32768}


@dataclass(frozen=True)
class Batch:
    """Token ids of queries and of their distinct passages.

    ``slots``: for each query the rows of its passages, the positive first. ``known``: for each query the rows of all
    passages that are no negatives of it, among them those known to answer it; in-batch negatives leave them out.
    """

    queries: Sequence[list[int]]
    passages: Sequence[list[int]]
    slots: Sequence[list[int]]
    known: Sequence[set[int]]

    @property
    def tokens(self) -> int:
        """Tokens of all texts, each once."""
        return sum(map(len, self.queries)) + sum(map(len, self.passages))

    def losses(self, queries: Tensor, passages: Tensor, config: FinetuneConfig) -> Tensor:
        """The loss of each query, [n], of vectors ``queries`` [n, d] and ``passages`` [m, d]."""
        slots = torch.tensor(self.slots, device=queries.device)
        if not config.in_batch_negatives:
            return _own_passages_losses(queries, passages[slots], config)
        known = torch.zeros(len(queries), len(passages), dtype=torch.bool)
        for row, answers in enumerate(self.known):
            known[row, list(answers)] = True
        known = known.to(queries.device)

        def loss_of(queries: Tensor, passages: Tensor) -> Tensor:
            return in_batch_loss(queries, passages, slots[:, 0], known, temperature=_temperature(config))

        return matryoshka(loss_of, queries, passages, config.matryoshka_dimensions, normalize=config.l2_normalize)


def _own_passages_losses(queries: Tensor, passages: Tensor, config: FinetuneConfig) -> Tensor:
    """Of ``queries`` [n, d] and ``passages`` [n, p, d]: the loss of each query, [n]."""

    def loss_of(queries: Tensor, passages: Tensor) -> Tensor:
        return contrastive_loss(queries, passages, temperature=_temperature(config))

    return matryoshka(loss_of, queries, passages, config.matryoshka_dimensions, normalize=config.l2_normalize)


def _temperature(config: FinetuneConfig) -> float:
    return config.temperature if config.l2_normalize else 1.0


class Gradient(Protocol):
    """Adds gradients to the float32 weights of an encoder."""

    whole_batches: bool
    """Whether a batch of any size fits into memory when its queries do not need each other."""
    queries: int
    """Queries that ``add`` takes at a time unless ``whole_batches``."""

    def add(self, batch: Batch, share: float) -> Tensor:
        """Add the gradient of ``share`` times the sum of the batch's losses; return that sum, a scalar."""
        ...

    def weights_changed(self) -> None:
        """Call after each optimizer step or other change of the weights."""

    def encode(self, ids: Sequence[list[int]]) -> Tensor:
        """Vectors of texts given as token ids, as training computes them: float32 [len(ids), d], no gradient."""
        ...

    def discard(self) -> None:
        """Forget the gradients added so far, and what a failed ``add`` left behind."""

    def halve(self) -> str | None:
        """Need about half the memory from now on; return what one pass may hold now, None when it is the least."""
        ...


def gradient_of(encoder: Encoder, config: FinetuneConfig, dtype: torch.dtype) -> Gradient:
    """The fastest way that ``encoder``, its device and ``dtype`` allow."""
    if encoder.device.type == "cuda" and dtype == torch.bfloat16 and supports(encoder.backbone):
        return PackedGradient(encoder, config, dtype, compiled=True)
    return PaddedGradient(encoder, config, dtype)


class PaddedGradient:
    """Any model: texts of like length padded to the longest, ``dtype`` by autocast."""

    whole_batches = False

    def __init__(self, encoder: Encoder, config: FinetuneConfig, dtype: torch.dtype) -> None:
        self.encoder, self.config, self._dtype = encoder, config, dtype
        self.queries = config.local_batch_size

    def add(self, batch: Batch, share: float) -> Tensor:
        with self._autocast():
            queries, passages = self._vectors(batch.queries), self._vectors(batch.passages)
        loss = batch.losses(queries, passages, self.config).sum() * share
        loss.backward()
        return loss.detach()

    def weights_changed(self) -> None:
        """Nothing to do: the weights that compute are those that are trained."""

    @torch.no_grad()
    def encode(self, ids: Sequence[list[int]]) -> Tensor:
        with self._autocast():
            return self._vectors(ids).float()

    def discard(self) -> None:
        self.encoder.zero_grad(set_to_none=True)

    def halve(self) -> str | None:
        if self.queries == 1:
            return None
        self.queries //= 2
        fewer = ", so that a query sees fewer in-batch negatives" if self.config.in_batch_negatives else ""
        return f"{self.queries} queries{fewer}"

    def _vectors(self, ids: Sequence[list[int]]) -> Tensor:
        """[len(ids), d]. Texts of like length go together: padding is work too."""
        groups = batches_by_length([len(row) for row in ids], _FORWARD_TOKENS[self.encoder.device.type])
        vectors = torch.cat([self.encoder(*self.encoder.batch([ids[row] for row in group])) for group in groups])
        return _in_order(vectors, groups)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        if self._dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.encoder.device.type, dtype=self._dtype)


class PackedGradient:
    """Bidirectional Llama without padding, computed by a copy of the weights in ``dtype``."""

    def __init__(self, encoder: Encoder, config: FinetuneConfig, dtype: torch.dtype, *, compiled: bool) -> None:
        self.config = config
        self.whole_batches = not config.in_batch_negatives
        self.queries = config.local_batch_size
        self._trained, self._tokens = encoder, config.packed_batch_tokens
        self._copy = ComputeCopy(encoder.backbone, dtype)
        self._packed = PackedEncoder(self._copy.module, config.pooling, config.l2_normalize, compiled=compiled)

    def add(self, batch: Batch, share: float) -> Tensor:
        ids = [*batch.queries, *batch.passages]
        first = len(batch.queries)
        groups = [[row, *(first + slot for slot in slots)] for row, slots in enumerate(batch.slots)]
        together = self.config.in_batch_negatives
        places = self._places(batch)

        def loss_of(vectors: Tensor) -> Tensor:
            """Of ``vectors`` [some queries, 1 + passages of a query, d]; of all queries when they need each other."""
            queries, passages = vectors[:, 0], vectors[:, 1:]
            if together:
                return batch.losses(queries, passages.flatten(0, 1)[places], self.config).sum() * share
            return _own_passages_losses(queries, passages, self.config).sum() * share

        return backward(self._packed, ids, groups, loss_of, capacity=self._tokens, together=together)

    def weights_changed(self) -> None:
        self._copy.refresh()

    @torch.no_grad()
    def encode(self, ids: Sequence[list[int]]) -> Tensor:
        groups = balanced([len(row) for row in ids], self._tokens)
        return _in_order(torch.cat([self._packed(pack(ids, rows, self._packed.device)) for rows in groups]), groups)

    def discard(self) -> None:
        self._trained.zero_grad(set_to_none=True)
        self._copy.module.zero_grad(set_to_none=True)

    def halve(self) -> str | None:
        # Below the length of a text there is nothing left to divide.
        if self._tokens <= max(self.config.query_max_length, self.config.passage_max_length):
            return None
        self._tokens //= 2
        return f"{self._tokens} tokens"

    def _places(self, batch: Batch) -> Tensor:
        """Where each passage stands first when the slots are laid end to end."""
        place: dict[int, int] = {}
        for number, row in enumerate(row for slots in batch.slots for row in slots):
            place.setdefault(row, number)
        return torch.tensor([place[row] for row in range(len(batch.passages))], device=self._packed.device)


def _in_order(vectors: Tensor, groups: Sequence[Sequence[int]]) -> Tensor:
    """``vectors``, which lie group after group, in the order of the rows that ``groups`` names."""
    place = torch.empty(len(vectors), dtype=torch.long)
    place[torch.tensor([row for group in groups for row in group])] = torch.arange(len(vectors))
    return vectors[place.to(vectors.device)]
