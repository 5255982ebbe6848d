"""Models that do not fit on one GPU: weights, gradients and optimizer states spread over the ranks (FSDP2)."""

from __future__ import annotations

from collections.abc import Sequence

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
from components.finetune.gradients.gradient import loss_over_all
from components.finetune.gradients.padded_gradient import PaddedGradient


def shard(encoder: Encoder, dtype: torch.dtype, mesh: DeviceMesh) -> None:
    """Spread the weights of ``encoder``, which lies in main memory, over the devices of ``mesh``.

    Each layer is put together while it computes; it keeps only its input for the backward pass and computes the rest
    again. Products are in ``dtype``, weights, gradients and their sums in float32 (Zhao et al. 2023, arXiv 2304.11277).
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    backbone = encoder.backbone
    for layer in layers(backbone):
        layer.gradient_checkpointing = True
        layer._gradient_checkpointing_func = _recomputed
        # What transformers asks before it recomputes; the modules inside stay as they are, without dropout.
        layer.training = True
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    # Also the outermost: what it held on to after validation would be stale after the next step.
    fully_shard(backbone, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
    encoder.to(mesh.device_type)


def layers(backbone: PreTrainedModel) -> list[nn.Module]:
    """The transformer layers: the modules that transformers itself never splits between devices."""
    names = set(backbone._no_split_modules or ())
    return [module for module in backbone.modules() if type(module).__name__ in names]


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may be spread over the ranks, put together; all ranks must call it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def put(target: Tensor, value: Tensor) -> None:
    """Overwrite ``target``, which may be spread over the ranks, with the whole ``value`` that every rank has."""
    target.copy_(part_of(value, target))


def part_of(value: Tensor, like: Tensor) -> Tensor:
    """The whole ``value``, spread over the ranks as ``like`` is."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)


class ShardedGradient(PaddedGradient):
    """Padded texts through a model that ``shard`` spread.

    A forward pass takes all ranks, so each runs as many as the busiest, on nothing if need be.
    """

    in_step = True

    def __init__(self, encoder: Encoder, config: FinetuneConfig, process_group: ProcessGroup) -> None:
        super().__init__(encoder, config, torch.float32, process_group)
        self._idle: list[Tensor] = []

    def add(self, batch: Batch, share: float) -> Tensor:
        self._idle = []
        # Gradients are averaged over the ranks.
        share *= self._process_group.size
        if self.config.in_batch_negatives:
            rows = self._own(batch.texts)
            own = self._vectors([batch.texts[row] for row in rows])
            loss = loss_over_all(batch, own, rows, self._process_group, self.config, share)
        else:
            queries, passages = self._vectors(batch.queries), self._vectors(batch.passages)
            loss = batch.losses(queries, passages, self.config).sum() * share if batch.queries else queries.sum()
        (loss + sum(vectors.sum() * 0.0 for vectors in self._idle)).backward()
        self._idle = []
        found = loss.detach() / self._process_group.size
        return found / self._process_group.size if self.together else found

    def add_up(self) -> None:
        """Nothing to do: the backward pass did."""

    def encode(self, ids: Sequence[list[int]]) -> Tensor:
        self._idle = []
        return super().encode(ids)

    def halve(self) -> str | None:
        """A rank that runs out of memory leaves the others waiting for it inside of the model."""
        return None

    def _vectors(self, ids: Sequence[list[int]]) -> Tensor:
        groups = self._groups(ids)
        most = int(self._process_group.all_reduce_max(len(groups))[0])
        self._idle += [self._forward([[0]], [0]) for _ in range(most - len(groups))]
        return super()._vectors(ids)


def _recomputed(function: object, *arguments: object, **named: object) -> object:
    return torch.utils.checkpoint.checkpoint(function, *arguments, use_reentrant=False, **named)
