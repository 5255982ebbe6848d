"""The kernels for GPUs compute what torch computes on a CPU, for sizes that are powers of two and others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from components.core.encoder.kernel_types import RotaryTables
from components.core.encoder.kernels.fp8 import quantize
from components.core.encoder.kernels.rms_norm import add_rms_norm_forward, rms_norm, rms_norm_backward, rms_norm_forward
from components.core.encoder.kernels.rotary import rotary_backward, rotary_forward
from components.core.encoder.kernels.swiglu import swiglu, swiglu_backward

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
TOKENS, EPSILON = 301, 1e-5
# heads, key heads, size of a head, type
SHAPES = [(32, 8, 64, torch.bfloat16), (6, 2, 8, torch.float32), (12, 3, 96, torch.float32)]
# size of a row, type
ROWS = [
    (2048, torch.bfloat16), (8192, torch.bfloat16), (1000, torch.bfloat16), (33, torch.bfloat16),
    (1024, torch.float32), (1000, torch.float32), (48, torch.float32),
]  # fmt: skip
rows = pytest.mark.parametrize(("size", "kind"), ROWS)


def on_gpu(*tensors: Tensor | None) -> list[Tensor | None]:
    return [tensor if tensor is None else tensor.cuda() for tensor in tensors]


def random(count: int, size: int, kind: torch.dtype) -> list[Tensor]:
    """``count`` tensors [TOKENS, size]."""
    torch.manual_seed(0)
    return [torch.randn(TOKENS, size).to(kind) for _ in range(count)]


def normed(hidden: Tensor, weight: Tensor) -> Tensor:
    return weight * hidden * torch.rsqrt(hidden.square().mean(-1, keepdim=True) + EPSILON)


def gradients(of: Tensor, gradient: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(of, inputs, gradient.double())


def exact(*tensors: Tensor) -> list[Tensor]:
    return [tensor.double().requires_grad_() for tensor in tensors]


def assert_near(found: Tensor, expected: Tensor) -> None:
    """Within what two roundings to ``found``'s type cost."""
    allowed = 3e-3 if found.dtype == torch.bfloat16 else 1e-6
    assert (found.cpu().double() - expected).norm() <= allowed * expected.norm()


@pytest.mark.parametrize(("heads", "key_heads", "size", "kind"), SHAPES)
@pytest.mark.parametrize("scaled", [False, True])
def test_rotations(heads: int, key_heads: int, size: int, kind: torch.dtype, scaled: bool) -> None:
    torch.manual_seed(0)
    qkv = torch.randn(TOKENS, (heads + 2 * key_heads) * size).to(kind)
    angles = torch.randn(TOKENS, size // 2).repeat(1, 2)
    tables = RotaryTables(angles.cos(), angles.sin(), torch.rand(TOKENS, 1, 1) + 1 if scaled else None)
    expected = rotary_forward(qkv, tables, heads * size, key_heads * size)
    found = rotary_forward(qkv.cuda(), RotaryTables(*on_gpu(*tables)), heads * size, key_heads * size)
    for ours, reference in zip(found, expected, strict=True):
        torch.testing.assert_close(ours.cpu(), reference)
    torch.testing.assert_close(
        rotary_backward(*found, RotaryTables(*on_gpu(*tables))).cpu(),
        rotary_backward(*expected, tables),
        atol=1e-5,
        rtol=2e-2,
    )


@rows
def test_rms_norm(size: int, kind: torch.dtype) -> None:
    hidden, added = random(2, size, kind)
    weight = torch.rand(size).to(kind)
    found = rms_norm_forward(*on_gpu(hidden, weight), EPSILON)
    assert_near(found, normed(hidden.double(), weight.double()))
    torch.testing.assert_close(found.cpu(), rms_norm_forward(hidden, weight, EPSILON))
    assert torch.equal(found, rms_norm_forward(*on_gpu(hidden, weight), EPSILON))

    total, scaled = add_rms_norm_forward(*on_gpu(hidden, added, weight), EPSILON)
    assert torch.equal(total.cpu(), hidden + added)
    assert torch.equal(scaled, rms_norm_forward(total, weight.cuda(), EPSILON))


@rows
@pytest.mark.parametrize("beside", [False, True])
def test_backward_pass_of_rms_norm(size: int, kind: torch.dtype, beside: bool) -> None:
    hidden, gradient, added = random(3, size, kind)
    weight = torch.rand(size).to(kind)
    exact_hidden, exact_weight = exact(hidden, weight)
    expected = list(gradients(normed(exact_hidden, exact_weight), gradient, exact_hidden, exact_weight))
    given = (*on_gpu(gradient, hidden, weight), EPSILON, added.cuda() if beside else None)
    if beside:
        expected[0] += added.double()
    found = rms_norm_backward(*given)
    for ours, again, reference in zip(found, rms_norm_backward(*given), expected, strict=True):
        assert_near(ours, reference)
        assert torch.equal(ours, again)


def test_autograd_through_rms_norm() -> None:
    """With a gradient whose rows do not lie one after the other in memory."""
    hidden, gradient = random(2, 48, torch.float32)
    given = [tensor.cuda().requires_grad_() for tensor in (hidden, torch.rand(48))]
    expected = rms_norm_backward(gradient, hidden, given[1].detach().cpu(), EPSILON)
    found = torch.autograd.grad(rms_norm(*given, EPSILON), given, gradient.t().contiguous().t().cuda())
    for ours, reference in zip(found, expected, strict=True):
        assert_near(ours, reference.double())


@rows
def test_swiglu(size: int, kind: torch.dtype) -> None:
    gates, ups, gradient = random(3, size, kind)
    gates[0] *= 100  # where exp() leaves float32
    exact_gates, exact_ups = exact(gates, ups)
    opened = nn.functional.silu(exact_gates) * exact_ups
    found = swiglu(*on_gpu(gates, ups))
    assert_near(found, opened.detach())
    torch.testing.assert_close(found.cpu(), swiglu(gates, ups))
    assert torch.equal(found, swiglu(*on_gpu(gates, ups)))

    back, again = (swiglu_backward(*on_gpu(gradient, gates, ups)) for _ in range(2))
    expected = gradients(opened, gradient, exact_gates, exact_ups)
    for ours, repeated, reference in zip(back, again, expected, strict=True):
        assert_near(ours, reference)
        assert torch.equal(ours, repeated)


def assert_rounded(values: Tensor) -> None:
    """``values`` are of the CPU; a row's largest becomes 448, and nothing is further off than 4 significant bits."""
    found, scale = quantize(values.cuda())
    expected, expected_scale = quantize(values)
    assert found.is_contiguous()
    torch.testing.assert_close(scale.cpu(), expected_scale, atol=0, rtol=1e-6)
    same = found.cpu().view(torch.uint8) == expected.view(torch.uint8)
    assert same.float().mean() > 0.99  # a quotient halfway between two may go either way
    off = found.cpu().double() * scale.cpu().double() - values.double()
    smallest = 2.0**-10 * scale.cpu().double()  # half of the least number above 0
    assert (off.abs() <= (values.double().abs() / 16).maximum(smallest) * (1 + 1e-5)).all()
    again = quantize(values.cuda())
    assert torch.equal(found.view(torch.uint8), again[0].view(torch.uint8))
    assert torch.equal(scale, again[1])


@pytest.fixture
def eight_bits() -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("needs a GPU with 8-bit floats")


@pytest.mark.usefixtures("eight_bits")
@rows
def test_rounding_to_eight_bits(size: int, kind: torch.dtype) -> None:
    (values,) = random(1, size, kind)
    values *= torch.logspace(-9, 9, TOKENS)[:, None].to(kind)
    values[5] = 0
    assert_rounded(values)
    assert_rounded(values.t())


@pytest.mark.usefixtures("eight_bits")
def test_what_is_no_number_stays_none_in_eight_bits() -> None:
    values = torch.ones(3, 100, device="cuda")
    values[1, 7], values[2, 7] = float("nan"), float("inf")
    found, scale = quantize(values)
    assert (found.float() * scale).isfinite().all(1).tolist() == [True, False, False]


@pytest.mark.usefixtures("eight_bits")
def test_more_numbers_than_32_bits_count() -> None:
    size = 2048
    tokens, last = 2**31 // size + 5, slice(-3, None)
    if torch.cuda.mem_get_info()[0] < 14 * tokens * size:
        pytest.skip("needs 30 GB of the GPU's memory")
    hidden, added, gradient = (torch.zeros(tokens, size, dtype=torch.bfloat16, device="cuda") for _ in range(3))
    small = [part[:3] for part in random(3, size, torch.bfloat16)]
    for large, part in zip((hidden, added, gradient), small, strict=True):
        large[last] = part.cuda()
    weight = torch.rand(size).bfloat16()

    def assert_last(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
        for ours, reference in zip(found, expected, strict=True):
            assert_near(ours[last] if ours.ndim > 1 else ours, reference.double())

    assert_last(
        add_rms_norm_forward(hidden, added, weight.cuda(), EPSILON),
        add_rms_norm_forward(small[0], small[1], weight, EPSILON),
    )
    assert_last(
        rms_norm_backward(gradient, hidden, weight.cuda(), EPSILON, added),
        rms_norm_backward(small[2], small[0], weight, EPSILON, small[1]),
    )
    assert_last((swiglu(hidden, added),), (swiglu(*small[:2]),))
    assert_last(swiglu_backward(gradient, hidden, added), swiglu_backward(small[2], *small[:2]))
    found, scale = quantize(hidden)
    expected, expected_scale = quantize(small[0])
    assert_near((found[last].float() * scale[last]).bfloat16(), expected.double() * expected_scale)
