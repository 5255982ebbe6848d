"""Models that do not fit on one GPU: weights, gradients and optimizer states sharded over the ranks (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import PreTrainedModel

from components.core.distributed.process_group import ProcessGroup
from components.core.encoder.model import Encoder
from components.finetune.component import FinetuneConfig
from components.finetune.data.batch import Batch
from components.finetune.data.tokenized import TokenizedData
from components.finetune.gradients.gradient import NotRepeatableOutOfMemoryError, StepLoss, compute_in_batch_loss
from components.finetune.gradients.padded_gradient import PaddedGradient


def shard_model(encoder: Encoder, dtype: torch.dtype, mesh: DeviceMesh) -> None:
    """Shard the weights of ``encoder``, which lies in main memory, over the devices of ``mesh``.

    Each layer is gathered while it computes; it keeps only its input for the backward pass and computes the rest again.
    Products are in ``dtype``, weights, gradients and their sums in float32 (Zhao et al. 2023, arXiv 2304.11277).
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    backbone = encoder.backbone
    layer: Any
    for layer in find_layers(backbone):
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = _checkpoint_layer
        # What transformers asks before it recomputes; the modules inside stay as they are, without dropout.
        layer.training = True
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    # Also the outermost: what it held on to after validation would be stale after the next step.
    fully_shard(backbone, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    encoder.to(mesh.device_type)


def find_layers(backbone: PreTrainedModel) -> list[nn.Module]:
    """Return the transformer layers: the modules that transformers itself never splits between devices."""
    names = set(backbone._no_split_modules or ())
    return [module for module in backbone.modules() if type(module).__name__ in names]


def gather_full(tensor: Tensor) -> Tensor:
    """Return the whole of a tensor that may be sharded over the ranks; all ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def copy_full(target: Tensor, value: Tensor) -> None:
    """Overwrite ``target``, which may be sharded over the ranks, with the whole ``value`` that every rank has."""
    target.copy_(shard_like(value, target))


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """Return the whole ``value``, sharded over the ranks as ``like`` is."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


class ShardedGradient(PaddedGradient):
    """Padded texts through a model that ``shard_model`` sharded.

    A forward pass takes all ranks, so each runs as many as the busiest rank, on a dummy text if it has no other.
    """

    def __init__(self, encoder: Encoder, config: FinetuneConfig, process_group: ProcessGroup) -> None:
        super().__init__(encoder, config, torch.float32, process_group)
        self._dummy_vectors: list[Tensor] = []

    def accumulate(self, data: TokenizedData, rows: Sequence[int], beat: Callable[[], None]) -> StepLoss:
        """Add this rank's part of the gradient of the mean loss of the examples ``rows`` of ``data``."""
        try:
            return super().accumulate(data, rows, beat)
        except torch.OutOfMemoryError:
            raise NotRepeatableOutOfMemoryError(
                f"out of memory on {self.encoder.device}; with fsdp the other GPUs wait inside of the model, so the "
                f"step cannot be repeated in smaller passes: set local_batch_size below {self._queries_per_pass}, or "
                f"lower passage_max_length, or take more GPUs, and run again"
            ) from None

    def _split_into_passes(self, batch: Batch) -> list[Sequence[int]]:
        passes = super()._split_into_passes(batch)
        most = int(self._process_group.all_reduce_max(len(passes))[0])
        return [*passes, *([[]] * (most - len(passes)))]

    def backward_pass(self, batch: Batch, scale: float) -> Tensor:
        """Add the gradient of ``scale`` times the sum of the losses; return this rank's part of it."""
        self._dummy_vectors = []
        # Gradients are averaged over the ranks.
        scale *= self._process_group.size
        if self.config.in_batch_negatives:
            rows = self._select_local_texts(batch.texts)
            vectors = self._encode_rows([batch.texts[row] for row in rows])
            loss = compute_in_batch_loss(batch, vectors, rows, self._process_group, self.config, scale)
        else:
            queries, passages = self._encode_rows(batch.queries), self._encode_rows(batch.passages)
            loss = (
                batch.compute_losses(queries, passages, self.config).sum() * scale if batch.queries else queries.sum()
            )
        (loss + sum(vectors.sum() * 0.0 for vectors in self._dummy_vectors)).backward()
        self._dummy_vectors = []
        local_loss = loss.detach() / self._process_group.size
        # With in-batch negatives all ranks compute the same loss.
        return local_loss / self._process_group.size if self.config.in_batch_negatives else local_loss

    def all_reduce(self) -> None:
        """Do nothing: the backward pass has summed the gradients."""

    def encode(self, ids: Sequence[list[int]]) -> Tensor:
        """Return the vectors of token ids, float32 [len(ids), d], on all ranks."""
        self._dummy_vectors = []
        return super().encode(ids)

    def halve_passes(self) -> str | None:
        """Return None: a rank that runs out of memory leaves the others waiting for it inside of the model."""
        return None

    def _encode_rows(self, ids: Sequence[list[int]]) -> Tensor:
        most = int(self._process_group.all_reduce_max(len(self._group_by_length(ids)))[0])
        missing = most - len(self._group_by_length(ids))
        self._dummy_vectors += [self._forward([[0]], [0]) for _ in range(missing)]
        return super()._encode_rows(ids)


def _checkpoint_layer(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    return torch.utils.checkpoint.checkpoint(function, *arguments, use_reentrant=False, **keywords)
