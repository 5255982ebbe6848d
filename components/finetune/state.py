"""Everything that training changes, as named tensors: weights, optimizer, random generators."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

_WEIGHTS, _OPTIMIZER, _RANDOM = "weights.", "optimizer.", "random."


class TrainingState:
    """The trained weights of ``model`` (float32), the states of ``optimizer`` and torch's random generators.

    Frozen weights are the base model's and are not part of it.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._weights = {name: weights for name, weights in model.named_parameters() if weights.requires_grad}
        self._optimizer = optimizer
        self._device = next(iter(self._weights.values())).device
        self._host: dict[str, Tensor] = {}

    def snapshot(self) -> dict[str, Tensor]:
        """A copy in the host's memory. The next snapshot writes over it."""
        for name, tensor in self._tensors().items():
            if name not in self._host:
                self._host[name] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._host[name].copy_(tensor, non_blocking=True)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return dict(self._host)

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Put everything back as ``snapshot`` found it. Raises KeyError when a tensor is missing."""
        for name, weights in self._weights.items():
            weights.copy_(tensors[_WEIGHTS + name])
        names = self._names()
        kept: dict[str, dict[str, Tensor]] = {name: {} for name in names}
        for name, tensor in tensors.items():
            if name.startswith(_OPTIMIZER):
                what, _, weights_name = name.removeprefix(_OPTIMIZER).partition(".")
                kept[weights_name][what] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        state = {number: kept[name] for number, name in enumerate(names) if kept[name]}
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})
        torch.set_rng_state(tensors[_RANDOM + "cpu"])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(tensors[_RANDOM + "cuda"], self._device)

    def weights(self) -> dict[str, Tensor]:
        """A copy of the trained weights in the host's memory."""
        return {name: weights.detach().to("cpu", copy=True) for name, weights in self._weights.items()}

    @torch.no_grad()
    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Give the model the weights that ``weights`` returned."""
        for name, target in self._weights.items():
            target.copy_(weights[name])

    def finite(self) -> bool:
        """Whether all weights are finite numbers."""
        norms = torch._foreach_norm([weights.detach() for weights in self._weights.values()])
        return bool(torch.stack(norms).isfinite().all())

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
