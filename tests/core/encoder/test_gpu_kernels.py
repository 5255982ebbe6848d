"""The kernels for GPUs compute what torch computes on a CPU, for sizes that are powers of two and others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from components.core.encoder.rms_norm import rms_norm, rms_norm_backward
from components.core.encoder.rotary import rotate, rotate_back

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
TOKENS = 301
# heads, key heads, size of a head, type
SHAPES = [(32, 8, 64, torch.bfloat16), (6, 2, 8, torch.float32), (12, 3, 96, torch.float32)]


def on_gpu(*tensors: Tensor | None) -> list[Tensor | None]:
    return [tensor if tensor is None else tensor.cuda() for tensor in tensors]


@pytest.mark.parametrize(("heads", "key_heads", "size", "kind"), SHAPES)
@pytest.mark.parametrize("scaled", [False, True])
def test_rotations(heads: int, key_heads: int, size: int, kind: torch.dtype, scaled: bool) -> None:
    torch.manual_seed(0)
    joined = torch.randn(TOKENS, (heads + 2 * key_heads) * size).to(kind)
    angles = torch.randn(TOKENS, size // 2).repeat(1, 2)
    positions = (angles.cos(), angles.sin(), torch.rand(TOKENS, 1, 1) + 1 if scaled else None)
    expected = rotate(joined, positions, heads * size, key_heads * size)
    found = rotate(joined.cuda(), on_gpu(*positions), heads * size, key_heads * size)
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), reference)
    torch.testing.assert_close(
        rotate_back(*found, on_gpu(*positions)).cpu(), rotate_back(*expected, positions), atol=1e-5, rtol=2e-2
    )


@pytest.mark.parametrize(("size", "kind"), [(2048, torch.bfloat16), (48, torch.float32), (1000, torch.float32)])
def test_backward_pass_of_rms_norm(size: int, kind: torch.dtype) -> None:
    """Against autograd in float64."""
    torch.manual_seed(0)
    hidden, gradient, added = (torch.randn(TOKENS, size).to(kind) for _ in range(3))
    weight = torch.rand(size).to(kind)
    exact_hidden, exact_weight = (part.double().requires_grad_() for part in (hidden, weight))
    scaled = exact_hidden * torch.rsqrt(exact_hidden.square().mean(-1, keepdim=True) + 1e-5)
    (exact_weight * scaled).backward(gradient.double())
    torch.testing.assert_close(rms_norm(hidden, weight, 1e-5).double(), exact_weight * scaled, atol=2e-2, rtol=2e-2)

    of_hidden, of_weight = rms_norm_backward(*on_gpu(gradient, hidden, weight), 1e-5, added.cuda())
    allowed = 1e-2 if kind == torch.bfloat16 else 1e-5
    for found, reference in ((of_hidden, exact_hidden.grad + added.double()), (of_weight, exact_weight.grad)):
        assert (found.cpu().double() - reference).norm() < allowed * reference.norm()
    assert torch.equal(of_weight, rms_norm_backward(*on_gpu(gradient, hidden, weight), 1e-5, added.cuda())[1])
