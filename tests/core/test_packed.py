"""Packed texts get the vectors and gradients that transformers computes with padding."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModel

from components.core.encoder.bidirectional import LlamaBidirectionalConfig, LlamaBidirectionalModel
from components.core.encoder.kernels.master_weights import ComputeCopy
from components.core.encoder.model import pool_padded
from components.core.encoder.packed.encoder import PackedEncoder, supports
from components.core.encoder.packed.packing import balance_bins, pack_in_bins
from components.core.encoder.training.contrastive import contrastive_backward
from components.core.encoder.training.phases import plan_phases

LENGTHS = [7, 1, 33, 12, 2, 33, 18]


@pytest.fixture(scope="module")
def backbone() -> LlamaBidirectionalModel:
    torch.manual_seed(3)
    config = LlamaBidirectionalConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=4096,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        initializer_range=0.2,
    )
    model = LlamaBidirectionalModel(config).eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            nn.init.uniform_(weight, 0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def ids() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, 97, (length,), generator=generator).tolist() for length in LENGTHS]


def padded_reference(backbone: LlamaBidirectionalModel, ids: list[list[int]], pooling: str) -> torch.Tensor:
    longest = max(map(len, ids))
    tokens = torch.tensor([[*text, *[0] * (longest - len(text))] for text in ids])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in ids])
    hidden = backbone(input_ids=tokens, attention_mask=mask).last_hidden_state
    return nn.functional.normalize(pool_padded(hidden, mask, pooling), dim=-1)


def packed_vectors(packed: PackedEncoder, ids: list[list[int]], capacity: int, **options: int) -> torch.Tensor:
    rows: list[torch.Tensor] = [torch.empty(0)] * len(ids)
    for texts in pack_in_bins(ids, capacity, torch.device("cpu")):
        for row, vector in zip(texts.rows, packed(texts, **options), strict=True):
            rows[row] = vector
    return torch.stack(rows)


@pytest.mark.parametrize("pooling", ["avg", "cls", "last"])
@pytest.mark.parametrize("capacity", [1000, 40, 1])
def test_vectors_equal_the_padded_model(backbone, ids, pooling, capacity):
    with torch.no_grad():
        found = packed_vectors(PackedEncoder(backbone, pooling), ids, capacity)
        expected = padded_reference(backbone, ids, pooling)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("recompute_layers", [0, 2])
def test_gradients_equal_the_padded_model(backbone, ids, recompute_layers):
    target = torch.randn(len(ids), 48, generator=torch.Generator().manual_seed(1))

    def gradients(vectors: torch.Tensor) -> dict[str, torch.Tensor]:
        backbone.zero_grad()
        (vectors * target).sum().backward()
        return {name: weight.grad.clone() for name, weight in backbone.named_parameters()}

    expected = gradients(padded_reference(backbone, ids, "avg"))
    packed = PackedEncoder(backbone, "avg")
    found = gradients(packed_vectors(packed, ids, 40, recompute_layers=recompute_layers))
    for name, reference in expected.items():
        assert (found[name] - reference).norm() <= 1e-4 * reference.norm(), name


def test_weights_learned_packed_are_saved_under_their_own_names(backbone, ids, tmp_path: Path):
    before = {name: weight.clone() for name, weight in backbone.state_dict().items()}
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    packed_vectors(PackedEncoder(backbone, "avg"), ids, 40)[:, 0].sum().backward()
    optimizer.step()
    backbone.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == before.keys()
    assert all(torch.equal(loaded[name], weight) for name, weight in backbone.state_dict().items())
    assert not torch.equal(loaded["layers.0.self_attn.k_proj.weight"], before["layers.0.self_attn.k_proj.weight"])


def test_a_causal_model_is_not_supported(backbone):
    assert supports(backbone)
    causal = type(backbone).__mro__[1](backbone.config)
    assert not supports(causal)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 512), min_size=1, max_size=200), st.integers(1, 4096))
def test_bins_hold_every_text_once_and_are_even(lengths, capacity):
    groups = balance_bins(lengths, capacity)
    assert sorted(row for rows in groups for row in rows) == list(range(len(lengths)))
    loads = [sum(lengths[row] for row in rows) for rows in groups]
    assert max(loads) <= sum(lengths) / len(groups) + max(lengths)
    assert len(groups) == min(len(lengths), -(-sum(lengths) // capacity))
    assert min(len(rows) for rows in groups) >= 1


def loss_of(vectors: torch.Tensor) -> torch.Tensor:
    """Each group's first text against its others, the second being the right one; summed over groups."""
    logits = torch.einsum("gd,gcd->gc", vectors[:, 0], vectors[:, 1:]) / 0.02
    return nn.functional.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), reduction="sum")


@pytest.mark.parametrize(
    ("groups", "phases"),
    [
        pytest.param([[0, 2, 3], [1, 5, 3], [4, 2, 5]], 1, id="shared texts: once, layers recomputed"),
        pytest.param([[0, 2], [1, 3], [4, 6]], 2, id="nothing shared: bin by bin"),
    ],
)
def test_phases_sum_to_the_loss_and_gradients_of_the_batch(backbone, ids, groups, phases):
    backbone.zero_grad()
    expected_loss = loss_of(padded_reference(backbone, ids, "avg")[torch.tensor(groups)])
    expected_loss.backward()
    expected = {name: weight.grad.clone() for name, weight in backbone.named_parameters()}

    backbone.zero_grad()
    packed = PackedEncoder(ComputeCopy(backbone, torch.float32).module, "avg")
    assert len(plan_phases(groups, LENGTHS, capacity=60, layers=3)) == phases
    loss = contrastive_backward(packed, ids, groups, loss_of, capacity=60)
    torch.testing.assert_close(loss, expected_loss.detach(), atol=1e-4, rtol=1e-5)
    for name, weight in backbone.named_parameters():
        assert (weight.grad - expected[name]).norm() <= 1e-4 * expected[name].norm(), name


def test_a_stream_of_texts_gives_every_row_its_vector(backbone, ids, monkeypatch):
    monkeypatch.setattr("components.core.encoder.packed.encoder._TEXTS_PER_CHUNK", 3)
    texts = [" ".join(map(str, text)) for text in ids]
    found = np.full((len(texts), 48), np.nan, dtype=np.float32)
    packed = PackedEncoder(backbone, "avg")
    for rows, vectors in packed.stream(texts, lambda part: [[int(word) for word in text.split()] for text in part], 40):
        found[rows] = vectors
    with torch.no_grad():
        expected = padded_reference(backbone, ids, "avg")
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=0)


def test_eight_bits_round_vectors_and_gradients_a_little(backbone, ids):
    def measured(fp8: bool) -> tuple[torch.Tensor, torch.Tensor]:
        backbone.zero_grad()
        vectors = packed_vectors(PackedEncoder(backbone, "avg", fp8=fp8), ids, 40)
        vectors[:, 0].sum().backward()
        return vectors.detach(), backbone.layers[0].mlp.up_proj.weight.grad.flatten()

    (exact, gradient), (rounded, rounded_gradient) = measured(False), measured(True)
    assert 0.99 < nn.functional.cosine_similarity(exact, rounded).min() < 0.99999
    assert 0.98 < nn.functional.cosine_similarity(gradient, rounded_gradient, dim=0) < 0.99999


def test_eight_bit_weights_follow_every_change_of_the_weights(backbone, ids):
    copy = deepcopy(backbone)
    used, fresh = (PackedEncoder(copy, "avg", fp8=True) for _ in range(2))
    with torch.no_grad():
        before = packed_vectors(used, ids, 40)
        for weight in copy.parameters():
            weight.mul_(1 + 0.3 * torch.rand(weight.shape, generator=torch.Generator().manual_seed(2)))
        after = packed_vectors(used, ids, 40)
        torch.testing.assert_close(after, packed_vectors(fresh, ids, 40), atol=0, rtol=0)
    assert (after - before).abs().max() > 1e-3
