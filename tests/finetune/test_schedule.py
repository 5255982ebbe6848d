"""The rate of every step against the recipe's formula; what gets weight decay."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from components.core.errors import InputError
from components.core.settings import load
from components.finetune.component import FinetuneConfig
from components.finetune.schedule import build_optimizer, learning_rate

PEAK = 2e-5


@pytest.mark.parametrize(("total", "warmup"), [(100, 5), (1000, 40), (60, 0)])
@pytest.mark.parametrize("style", ["cosine", "linear"])
def test_warm_up_then_decay(total: int, warmup: int, style: str) -> None:
    """Straight from 0.1 of the peak to the peak, then down to 0.01 of it, which the last step has."""
    config = FinetuneConfig(learning_rate=PEAK, lr_warmup_steps=warmup, lr_decay_style=style)
    for step in range(total):
        if step < warmup:
            share = 0.1 + 0.9 * step / warmup
        else:
            through = (step - warmup) / (total - 1 - warmup)
            share = 1 - 0.99 * (through if style == "linear" else (1 - math.cos(math.pi * through)) / 2)
        assert learning_rate(step, total, config) == pytest.approx(PEAK * share, rel=1e-12), step
    assert learning_rate(warmup, total, config) == PEAK
    assert learning_rate(total - 1, total, config) == pytest.approx(0.01 * PEAK)


@given(st.integers(1, 60), st.integers(0, 100), st.sampled_from(["cosine", "linear", "constant"]))
def test_any_number_of_steps_has_a_rate(total: int, warmup: int, style: str) -> None:
    """The recipe's scheduler stops when the warm-up is as long as the training."""
    config = FinetuneConfig(learning_rate=PEAK, lr_warmup_steps=warmup, lr_decay_style=style)
    rates = [learning_rate(step, total, config) for step in range(total)]
    assert all(0.0099 * PEAK <= rate <= PEAK for rate in rates)
    assert max(rates) == PEAK
    top = rates.index(PEAK)
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert top <= total / 10


def test_a_constant_rate_stays_at_the_peak() -> None:
    config = FinetuneConfig(learning_rate=PEAK, lr_warmup_steps=5, lr_decay_style="constant")
    assert [learning_rate(step, 100, config) for step in range(5, 100)] == [PEAK] * 95
    assert learning_rate(0, 100, config) == pytest.approx(0.1 * PEAK)


def test_norms_and_biases_are_not_decayed() -> None:
    """With no gradient but decay, only matrices shrink, by the rate times the decay."""
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.LayerNorm(3))
    for weights in model.parameters():
        nn.init.ones_(weights)
        weights.grad = torch.zeros_like(weights)
    build_optimizer(model, FinetuneConfig(learning_rate=0.1, weight_decay=0.5)).step()
    found = {name: weights.detach().unique().tolist() for name, weights in model.named_parameters()}
    assert found == {
        "0.weight": [pytest.approx(0.95)],
        "1.weight": [pytest.approx(0.95)],
        "1.bias": [1.0],
        "2.weight": [1.0],
        "2.bias": [1.0],
    }


@pytest.mark.parametrize("backend", ["auto", "fused_adam"])
def test_every_backend_makes_the_updates_of_adamw(backend: str) -> None:
    """Against torch's plain implementation and against the formula (Loshchilov and Hutter 2019, arXiv 1711.05101)."""
    torch.manual_seed(0)
    ours = nn.Linear(4, 3)
    theirs, formula = copy.deepcopy(ours), {name: w.detach().double() for name, w in ours.named_parameters()}
    decay = {"weight": 0.5, "bias": 0.0}
    groups = [{"params": [w], "weight_decay": decay[name]} for name, w in theirs.named_parameters()]
    reference = torch.optim.AdamW(groups, lr=PEAK, foreach=False, fused=False)
    config = FinetuneConfig(learning_rate=PEAK, weight_decay=0.5, optimizer_backend=backend)
    optimizer = build_optimizer(ours, config)
    first, second = ({name: torch.zeros_like(w) for name, w in formula.items()} for _ in range(2))
    for step in range(1, 11):
        for name, weights in ours.named_parameters():
            weights.grad = torch.randn_like(weights)
            theirs.get_parameter(name).grad = weights.grad.clone()
            gradient = weights.grad.double()
            first[name] = 0.9 * first[name] + 0.1 * gradient
            second[name] = 0.999 * second[name] + 0.001 * gradient**2
            ratio = first[name] / (1 - 0.9**step) / ((second[name] / (1 - 0.999**step)).sqrt() + 1e-8)
            formula[name] = formula[name] * (1 - PEAK * decay[name]) - PEAK * ratio
        optimizer.step()
        reference.step()
    for name, weights in ours.named_parameters():
        assert weights.dtype == optimizer.state[weights]["exp_avg"].dtype == torch.float32
        torch.testing.assert_close(weights, theirs.get_parameter(name), rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(weights.double(), formula[name], rtol=1e-5, atol=1e-7)


def test_a_backend_that_is_not_offered_says_what_to_take() -> None:
    with pytest.raises(InputError, match=r"finetune: optimizer_backend: flash_adamw, .* is not offered: take auto"):
        load(FinetuneConfig, {"optimizer_backend": "flash_adamw"}, stage="finetune")
    with pytest.raises(InputError, match="optimizer_backend = 'adam': input should be 'auto' or 'fused_adam'"):
        load(FinetuneConfig, {"optimizer_backend": "adam"}, stage="finetune")
