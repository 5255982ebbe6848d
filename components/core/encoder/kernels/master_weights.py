"""Float32 weights that are trained, and the bfloat16 copy of them that computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from components.core.encoder.kernels.matmul import add_matrix_product, matrix_product


class ComputeCopy:
    """A copy of ``master`` in ``dtype`` whose gradients are summed in float32 at ``master``.

    A step at learning rate 1e-5 is smaller than bfloat16 resolves: weights must be float32 to learn (Micikevicius et
    al., 2018). Backward passes through ``module`` leave their gradients in ``master``'s ``.grad``: weights whose
    gradient is a product by ``add_gradients`` and ``add_rows``, the others through a hook. Call ``refresh`` after every
    optimizer step.
    """

    def __init__(self, master: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
        self.module = copy.deepcopy(master).to(dtype)
        self._masters = list(master.parameters())
        self._copies = list(self.module.parameters())
        for trained, computing in zip(self._masters, self._copies, strict=True):
            if trained.requires_grad:
                computing.master = trained
                computing.register_post_accumulate_grad_hook(_hand_over_to(trained))

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights of ``master`` again."""
        torch._foreach_copy_(self._copies, self._masters)


def add_gradients(weights: Sequence[Tensor], of_values: Tensor, values: Tensor) -> list[Tensor | None]:
    """Gradients of ``weights``, which lie one below the other: ``of_values`` [tokens, out] transposed times ``values``.

    Where the weights are copies in lower precision, the product is added to the gradients of their masters at once,
    summed in float32 throughout, and None returned for each.
    """
    if not any(weight.requires_grad for weight in weights):
        return [None] * len(weights)
    sizes = [weight.shape[0] for weight in weights]
    masters = [_master(weight) for weight in weights]
    if any(master is None for master in masters):
        return list((of_values.t() @ values).split(sizes))
    if len(masters) == 1 and masters[0].grad is not None:
        add_matrix_product(masters[0].grad, of_values.t(), values)
    else:
        for master, part in zip(masters, matrix_product(of_values.t(), values).split(sizes), strict=True):
            _add(master, part)
    return [None] * len(weights)


def add_rows(table: Tensor, rows: Tensor, gradient: Tensor) -> Tensor | None:
    """The gradient of ``table`` [n, dimension] whose ``rows`` [tokens] were used; as ``add_gradients`` returns it."""
    if not table.requires_grad:
        return None
    master = _master(table)
    if master is None:
        total = torch.zeros_like(table)
    else:
        master.grad = total = torch.zeros_like(master) if master.grad is None else master.grad
    # Sums in the same order every time, unlike index_add_ on a GPU.
    total.index_put_((rows,), gradient.to(total.dtype), accumulate=True)
    return total if master is None else None


def _master(weight: Tensor) -> nn.Parameter | None:
    return getattr(weight, "master", None)


def _add(master: nn.Parameter, gradient: Tensor) -> None:
    if master.grad is None:
        master.grad = gradient.to(master.dtype)
    else:
        master.grad.add_(gradient)


def _hand_over_to(trained: nn.Parameter) -> Callable[[torch.Tensor], None]:
    def hand_over(computing: torch.Tensor) -> None:
        # Called, too, for weights whose gradient has gone to the master already.
        if computing.grad is not None:
            _add(trained, computing.grad)
            computing.grad = None

    return hand_over
