"""Master weights: float32 weights that are trained, and the bfloat16 copy of them that computes."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from components.core.encoder.kernels.matmul import add_matmul_float32, matmul_float32

# Attribute of a computing weight that refers to its master weight, as Megatron's ``main_grad`` refers to a gradient. A
# weight carries it through every layer, so that no layer can be given the wrong one.
_MASTER = "master_weight"


class ComputeCopy:
    """A copy of ``master`` in ``dtype`` whose gradients are accumulated in float32 in the ``.grad`` of ``master``.

    A step at learning rate 1e-5 is smaller than bfloat16 resolves: weights must be float32 to learn (Micikevicius et
    al., 2018, arXiv 1710.03740). Backward passes through ``module`` leave no gradients in it: layers that call
    ``accumulate_weight_grad`` and ``accumulate_embedding_grad`` add theirs to the master weights at once, and a hook
    hands over the others. Call ``refresh`` after every optimizer step.
    """

    def __init__(self, master: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
        self.module = copy.deepcopy(master).to(dtype)
        self._masters = list(master.parameters())
        self._copies: list[Tensor] = list(self.module.parameters())
        for trained, computing in zip(self._masters, self._copies, strict=True):
            if trained.requires_grad:
                setattr(computing, _MASTER, trained)
                computing.register_post_accumulate_grad_hook(_make_grad_hook(trained))

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the weights of ``master`` again."""
        torch._foreach_copy_(self._copies, list[Tensor](self._masters))


def accumulate_weight_grad(weights: Sequence[Tensor], grad_out: Tensor, x: Tensor) -> list[Tensor | None]:
    """Compute ``grad_out.T @ x``, the gradient of ``weights`` of one linear layer, which are stacked along ``out``.

    Args:
        weights: Weights [out_i, in] whose products with ``x`` were computed as one, such as those of q, k and v.
        grad_out: Gradient of that product, [tokens, sum of out_i].
        x: Its input, [tokens, in].

    Returns:
        The gradient of each weight, [out_i, in]. None for each where it was added to the float32 gradients of the
        master weights instead, and where no weight is trained.
    """
    if not any(weight.requires_grad for weight in weights):
        return [None] * len(weights)
    sizes = [weight.shape[0] for weight in weights]
    masters = [master for master in map(_get_master, weights) if master is not None]
    if len(masters) < len(weights):
        return list((grad_out.t() @ x).split(sizes))
    if len(masters) == 1 and masters[0].grad is not None:
        add_matmul_float32(masters[0].grad, grad_out.t(), x)
    else:
        for master, grad in zip(masters, matmul_float32(grad_out.t(), x).split(sizes), strict=True):
            _add_to_grad(master, grad)
    return [None] * len(weights)


def accumulate_embedding_grad(table: Tensor, rows: Tensor, grad_out: Tensor) -> Tensor | None:
    """Add up the gradient of an embedding ``table`` of which ``rows`` were looked up.

    Args:
        table: [vocabulary, dimension].
        rows: int64 [tokens].
        grad_out: Gradient of ``table[rows]``, [tokens, dimension].

    Returns:
        The gradient [vocabulary, dimension]; None where it was added to that of the master weight instead, and where
        the table is not trained.
    """
    if not table.requires_grad:
        return None
    master = _get_master(table)
    if master is None:
        total = torch.zeros_like(table)
    else:
        master.grad = total = torch.zeros_like(master) if master.grad is None else master.grad
    # Sums in the same order every time, unlike index_add_ on a GPU.
    total.index_put_((rows,), grad_out.to(total.dtype), accumulate=True)
    return total if master is None else None


def _get_master(weight: Tensor) -> nn.Parameter | None:
    return getattr(weight, _MASTER, None)


def _add_to_grad(master: nn.Parameter, grad: Tensor) -> None:
    if master.grad is None:
        master.grad = grad.to(master.dtype)
    else:
        master.grad.add_(grad)


def _make_grad_hook(master: nn.Parameter) -> Callable[[Tensor], None]:
    def hand_over_grad(computing: Tensor) -> None:
        # Called, too, for weights whose gradient has been added to the master weight already.
        if computing.grad is not None:
            _add_to_grad(master, computing.grad)
            computing.grad = None

    return hand_over_grad
