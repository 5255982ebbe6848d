"""Everything that training changes, as named tensors: weights, optimizer, random generators."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from components.core.distributed.process_group import ProcessGroup
from components.finetune.gradients.sharding import copy_full, gather_full, shard_like

_WEIGHTS, _OPTIMIZER, _RANDOM = "weights.", "optimizer.", "random."


class TrainingState:
    """The trained weights of ``model`` (float32), the states of ``optimizer`` and torch's random generators.

    Frozen weights are the base model's and are not part of it. Only the first rank has copies of the state, which say
    nothing of how many ranks there are; ``sharded`` says whether it takes all of them to put one together.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, process_group: ProcessGroup | None = None
    ) -> None:
        self._weights = {name: weights for name, weights in model.named_parameters() if weights.requires_grad}
        self._optimizer, self._process_group = optimizer, process_group or ProcessGroup()
        self._device = next(iter(self._weights.values())).device
        self._host: dict[str, Tensor] = {}
        self.sharded = any(isinstance(weights, DTensor) for weights in self._weights.values())

    def snapshot(self) -> dict[str, Tensor]:
        """A copy in the first rank's main memory. The next snapshot writes over it."""
        for name, tensor in self._tensors().items():
            full = gather_full(tensor)
            if not self._process_group.is_main:
                continue
            if name not in self._host:
                self._host[name] = torch.empty_like(full, device="cpu", pin_memory=full.is_cuda)
            self._host[name].copy_(full, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return dict(self._host)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put everything back as ``snapshot`` found it; only the first rank needs the ``tensors``.

        Raises KeyError when a tensor is missing.
        """
        about = {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}
        about = self._process_group.broadcast_object(about)
        for name in (*(_WEIGHTS + name for name in self._weights), _RANDOM + "cpu"):
            if name not in about:
                raise KeyError(name)
        kept: dict[str, dict[str, Tensor]] = {name: {} for name in self._weights}
        for name, (shape, dtype) in about.items():
            value = self._everywhere(name, tensors, shape, dtype)
            if name.startswith(_WEIGHTS):
                copy_full(self._weights[name.removeprefix(_WEIGHTS)], value)
            elif name.startswith(_OPTIMIZER):
                what, _, weights_name = name.removeprefix(_OPTIMIZER).partition(".")
                like = self._weights[weights_name]
                kept[weights_name][what] = shard_like(value, like) if value.shape == like.shape else value
            elif name == _RANDOM + "cpu":
                torch.set_rng_state(value)
            elif self._device.type == "cuda":
                torch.cuda.set_rng_state(value, self._device)
        groups = self._optimizer.state_dict()["param_groups"]
        state = {number: kept[name] for number, name in enumerate(self._names()) if kept[name]}
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})

    def weights(self) -> dict[str, Tensor]:
        """A copy of the trained weights in the first rank's main memory; nothing on the others."""
        if not self.sharded and not self._process_group.is_main:
            return {}
        copies = {}
        for name, weights in self._weights.items():
            full = gather_full(weights.detach())
            if self._process_group.is_main:
                copies[name] = full.to("cpu", copy=True)
        return copies

    def finite(self) -> bool:
        """Whether all weights are finite numbers."""
        own = [weights.detach() for weights in self._weights.values()]
        local = [weights.to_local() if isinstance(weights, DTensor) else weights for weights in own]
        fine = bool(torch.stack(torch._foreach_norm(local)).isfinite().all())
        return not self._process_group.all_reduce_any(not fine) if self.sharded else fine

    def _everywhere(self, name: str, tensors: Mapping[str, Tensor], shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The first rank's tensor ``name``; one at a time is on the device, and none in the others' main memory."""
        device = torch.device("cpu") if name.startswith(_RANDOM) else self._device
        value = (
            tensors[name].to(device) if self._process_group.is_main else torch.empty(shape, dtype=dtype, device=device)
        )
        self._process_group.broadcast_tensor(value)
        return value

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {_WEIGHTS + name: weights.detach() for name, weights in self._weights.items()}
        for name, weights in self._weights.items():
            for what, tensor in self._optimizer.state[weights].items():
                tensors[f"{_OPTIMIZER}{what}.{name}"] = tensor
        tensors[_RANDOM + "cpu"] = torch.get_rng_state()
        if self._device.type == "cuda":
            tensors[_RANDOM + "cuda"] = torch.cuda.get_rng_state(self._device)
        return tensors

    def _names(self) -> list[str]:
        """Names of the weights in the order in which the optimizer numbers them."""
        name_of = {id(weights): name for name, weights in self._weights.items()}
        return [name_of[id(weights)] for group in self._optimizer.param_groups for weights in group["params"]]


@torch.no_grad()
def set_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give ``model``, which is not spread, the trained weights that ``TrainingState.weights`` returned."""
    named = dict(model.named_parameters())
    for name, value in weights.items():
        named[name].copy_(value)
