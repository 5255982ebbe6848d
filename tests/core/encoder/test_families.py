"""Every family of models with a packed path gets the vectors and gradients of transformers' own padded one."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    Ministral3Config,
    Ministral3Model,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    XLMRobertaConfig,
    XLMRobertaModel,
)

from components.core.encoder.bidirectional import LlamaBidirectionalConfig, LlamaBidirectionalModel
from components.core.encoder.kernels import attention
from components.core.encoder.kernels.master_weights import ComputeCopy
from components.core.encoder.model import pool_padded
from components.core.encoder.packed import llama as packed_llama
from components.core.encoder.packed.encoder import PackedEncoder, Pooling, supports
from components.core.encoder.packed.packing import pack_in_bins

WORDS, PAD = 97, 1
LENGTHS = [7, 1, 33, 12, 2, 40, 18]
SIZES = {
    "vocab_size": WORDS, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 6,
    "pad_token_id": PAD, "initializer_range": 0.2,
}  # fmt: skip


def llama() -> PreTrainedModel:
    return LlamaBidirectionalModel(LlamaBidirectionalConfig(**SIZES, num_key_value_heads=2))


def ministral(**changes: object) -> PreTrainedModel:
    """Nemotron-3-Embed's architecture. Queries are scaled from the 16th position on, so that it matters here."""
    rope = {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
    }  # fmt: skip
    given = {"num_key_value_heads": 2, "head_dim": 16, "is_causal": False, "rope_parameters": rope, **changes}
    return Ministral3Model(Ministral3Config(**SIZES, max_position_embeddings=256, **given))


def bert(**changes: object) -> PreTrainedModel:
    return BertModel(BertConfig(**SIZES, max_position_embeddings=64, **changes), add_pooling_layer=False)


def roberta() -> PreTrainedModel:
    return RobertaModel(RobertaConfig(**SIZES, max_position_embeddings=64), add_pooling_layer=False)


def xlm_roberta() -> PreTrainedModel:
    return XLMRobertaModel(XLMRobertaConfig(**SIZES, max_position_embeddings=64), add_pooling_layer=False)


@pytest.fixture(scope="module", params=[llama, ministral, bert, roberta, xlm_roberta], ids=lambda make: make.__name__)
def backbone(request: pytest.FixtureRequest) -> PreTrainedModel:
    torch.manual_seed(3)
    model = request.param().eval()
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            nn.init.uniform_(weight, -0.3, 0.3)
        elif "norm" in name.lower():
            nn.init.uniform_(weight, 0.5, 1.5)
    return model


@pytest.fixture(scope="module")
def ids() -> list[list[int]]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(3, WORDS, (length,), generator=generator).tolist() for length in LENGTHS]


def padded(backbone: PreTrainedModel, ids: list[list[int]], pooling: Pooling) -> Tensor:
    longest = max(map(len, ids))
    tokens = torch.tensor([[*text, *[PAD] * (longest - len(text))] for text in ids], device=backbone.device)
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in ids], device=backbone.device)
    hidden = backbone(input_ids=tokens, attention_mask=mask).last_hidden_state
    return nn.functional.normalize(pool_padded(hidden, mask, pooling), dim=-1)


def packed(encoder: PackedEncoder, ids: list[list[int]], capacity: int) -> Tensor:
    parts = pack_in_bins(ids, capacity, encoder.device)
    back = torch.tensor([row for part in parts for row in part.rows]).argsort()
    return torch.cat([encoder(part) for part in parts])[back.to(encoder.device)]


@pytest.mark.parametrize("pooling", ["avg", "cls", "last"])
@pytest.mark.parametrize("capacity", [1000, 40])
@torch.no_grad()
def test_vectors(backbone: PreTrainedModel, ids: list[list[int]], pooling: Pooling, capacity: int) -> None:
    assert supports(backbone)
    found = packed(PackedEncoder(backbone, pooling), ids, capacity)
    torch.testing.assert_close(found, padded(backbone, ids, pooling), atol=1e-5, rtol=0)


def test_gradients(backbone: PreTrainedModel, ids: list[list[int]]) -> None:
    target = torch.randn(len(ids), 48, generator=torch.Generator().manual_seed(1))

    def gradients(vectors: Tensor) -> dict[str, Tensor]:
        backbone.zero_grad()
        (vectors * target).sum().backward()
        return {name: weight.grad.clone() for name, weight in backbone.named_parameters()}

    expected = gradients(padded(backbone, ids, "avg"))
    largest = max(reference.norm() for reference in expected.values())
    for name, found in gradients(packed(PackedEncoder(backbone, "avg"), ids, 40)).items():
        # A bias of keys moves all scores of a query alike: its gradient is zero, and rounding what is left of it.
        assert (found - expected[name]).norm() <= 1e-4 * max(expected[name].norm(), 1e-3 * largest), name


@torch.no_grad()
def test_nothing_is_compiled_again_when_lengths_vary(
    backbone: PreTrainedModel, ids: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """BERT's layers are compiled as one, once; Llama and Ministral compile nothing."""
    counter, compiler = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiler(function, backend=counter, fullgraph=True))
    torch._dynamo.reset()
    encoder = PackedEncoder(backbone, "avg", compiled=True)
    packed(encoder, ids[:3], 1000)
    expected = 0 if packed_llama.supports(backbone) else 1
    assert counter.frame_count == expected
    for start in range(len(ids)):
        packed(encoder, ids[start:], 30)
    assert counter.frame_count == expected


def test_what_the_packed_path_does_not_compute_is_left_to_transformers() -> None:
    assert not supports(ministral(is_causal=True))
    assert not supports(ministral(sliding_window=8))
    assert not supports(LlamaModel(LlamaConfig(**SIZES, num_key_value_heads=2)))
    assert not supports(bert(hidden_act="relu"))
    assert not supports(bert(is_decoder=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make", [llama, ministral, bert, xlm_roberta], ids=lambda make: make.__name__)
@torch.no_grad()
def test_flash_attention_in_bfloat16(make, ids: list[list[int]]) -> None:
    """As near to float32 as transformers' own bfloat16 is."""
    torch.manual_seed(3)
    model = make().eval().cuda()
    exact = padded(model, ids, "avg")
    theirs = nn.functional.cosine_similarity(padded(model.bfloat16(), ids, "avg"), exact).min()
    ours = nn.functional.cosine_similarity(packed(PackedEncoder(model, "avg", compiled=True), ids, 40), exact).min()
    assert ours > 1 - 2 * (1 - theirs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("length", [40, 1500], ids=["many short texts", "a few long ones"])
@pytest.mark.parametrize("backend", ["auto", "torch"], ids=["flash-attn-4 where installed", "torch's kernels"])
def test_attention_repeats_its_gradients_bit_by_bit(length: int, backend: attention.AttentionBackend) -> None:
    torch.manual_seed(3)
    cu_seqlens = torch.arange(0, 6001, length, dtype=torch.int32, device="cuda")
    sizes = {"device": "cuda", "dtype": torch.bfloat16}
    query, gradient = (torch.randn(6000, 8, 64, **sizes) for _ in range(2))
    key, value = (torch.randn(6000, 2, 64, **sizes) for _ in range(2))
    made = attention.attention_forward(query, key, value, cu_seqlens, length, backend)
    found = [
        torch.cat(attention.attention_backward(gradient, query, key, value, *made, cu_seqlens, length, backend), dim=1)
        for _ in range(10)
    ]
    assert all(torch.equal(again, found[0]) for again in found)
    assert torch.get_deterministic_debug_mode() == 0
    assert torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("make", [llama, ministral, bert, xlm_roberta], ids=lambda make: make.__name__)
def test_gradients_in_bfloat16(make, ids: list[list[int]]) -> None:
    """Summed in float32 over several bins; as near to float32 as transformers' own bfloat16 is."""
    torch.manual_seed(3)
    master = make().eval().cuda()
    target = torch.randn(len(ids), 48, device="cuda")

    def gradient(vectors: Tensor, model: PreTrainedModel) -> Tensor:
        (vectors * target).sum().backward()
        return torch.cat([weight.grad.flatten().float() for weight in model.parameters()])

    exact = gradient(padded(master, ids, "avg"), master)
    master.zero_grad()
    copy = ComputeCopy(master)
    theirs = gradient(padded(copied := deepcopy(master).bfloat16(), ids, "avg"), copied)
    ours = gradient(packed(PackedEncoder(copy.module, "avg", compiled=True), ids, 40), master)
    assert (ours - exact).norm() < 1.2 * (theirs - exact).norm()


@pytest.fixture
def flash_attn_4(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of that name, on a Hopper GPU; returns the module that attention imports."""
    folder = tmp_path / "flash_attn" / "cute"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    attention._import_flash_attention_4.cache_clear()
    yield folder / "interface.py"
    attention._import_flash_attention_4.cache_clear()
    for name in [name for name in sys.modules if name.startswith("flash_attn")]:
        del sys.modules[name]


@pytest.mark.parametrize("size", [32, 64])
def test_flash_attn_4_serves_the_sizes_of_heads_that_it_was_measured_with(flash_attn_4: Path, size: int) -> None:
    flash_attn_4.write_text("")
    query = torch.zeros(1, 2, size)
    assert (attention._select_flash_attention_4(query, "auto") is not None) == (size == 64)
    assert attention._select_flash_attention_4(query, "torch") is None


def test_a_flash_attn_4_that_cannot_be_imported_is_passed_over(
    flash_attn_4: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flash_attn_4.write_text("import a_package_that_is_missing")
    assert attention._select_flash_attention_4(torch.zeros(1, 2, 64), "auto") is None
    assert "a_package_that_is_missing" in caplog.text
