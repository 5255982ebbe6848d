"""Float32 weights that are trained, and the bfloat16 copy of them that computes."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn


class ComputeCopy:
    """A copy of ``master`` in ``dtype`` whose gradients are summed in float32 at ``master``.

    A step at learning rate 1e-5 is smaller than bfloat16 resolves: weights must be float32 to learn (Micikevicius et
    al., 2018). Backward passes through ``module`` leave their gradients in ``master``'s ``.grad``; call ``refresh``
    after every optimizer step.
    """

    def __init__(self, master: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
        self.module = copy.deepcopy(master).to(dtype)
        self._masters = list(master.parameters())
        self._copies = list(self.module.parameters())
        for trained, computing in zip(self._masters, self._copies, strict=True):
            if trained.requires_grad:
                computing.register_post_accumulate_grad_hook(_hand_over_to(trained))

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights of ``master`` again."""
        torch._foreach_copy_(self._copies, self._masters)


def _hand_over_to(trained: nn.Parameter) -> Callable[[torch.Tensor], None]:
    def hand_over(computing: torch.Tensor) -> None:
        if trained.grad is None:
            trained.grad = computing.grad.to(trained.dtype)
        else:
            trained.grad.add_(computing.grad)
        computing.grad = None

    return hand_over
