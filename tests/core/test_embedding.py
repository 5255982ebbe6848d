"""Vectors from the cache and from several processes are those that the encoder makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from components.core.encoder.checkpoint import load_base
from components.core.encoder.config import EncoderConfig
from components.core.encoder.model import Encoder
from components.core.errors import InputError
from components.core.retrieval import encode_texts as encode_texts_module
from components.core.retrieval.encode_texts import EncodedTexts, EncodeOptions, TextGroup, encode_texts

TEXTS = [f"text {n} of the manual, on valve {n % 7} and pump {n % 3}" for n in range(40)]


def vectors(model: EncoderConfig | Path, texts: list[str], kind: str = "passage", **options: Any) -> EncodedTexts:
    (found,) = encode_texts(model, [TextGroup(texts, kind, "encoding")], EncodeOptions(batch_tokens=2048, **options))
    return found


@pytest.fixture(scope="module")
def expected(tiny: EncoderConfig) -> np.ndarray:
    return load_base(tiny).encode(TEXTS, "passage", batch_tokens=2048)


def test_a_text_is_encoded_once(tmp_path: Path, tiny: EncoderConfig, expected: np.ndarray) -> None:
    cache = str(tmp_path)
    first = vectors(tiny, TEXTS[:30], cache_uri=cache)
    # In another order, with some twice and some new.
    asked = [*TEXTS[5:], TEXTS[7], TEXTS[35]][::-1]
    second = vectors(tiny, asked, cache_uri=cache)
    third = vectors(tiny, asked, cache_uri=cache)
    assert (first.num_encoded, second.num_encoded, third.num_encoded) == (30, 10, 0)
    np.testing.assert_allclose(first.vectors, expected[:30], atol=1e-6)
    np.testing.assert_allclose(second.vectors, [expected[TEXTS.index(text)] for text in asked], atol=1e-6)
    np.testing.assert_array_equal(third.vectors, second.vectors)


def test_a_killed_run_keeps_its_finished_pieces(
    tmp_path: Path, tiny: EncoderConfig, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_texts_module, "TEXTS_PER_CHUNK", 8)
    encode, calls = Encoder.encode, []

    def killed(self: Encoder, *arguments: Any, **given: Any) -> np.ndarray:
        calls.append(given["label"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(self, *arguments, **given)

    with monkeypatch.context() as patch:
        patch.setattr(Encoder, "encode", killed)
        with pytest.raises(KeyboardInterrupt):
            vectors(tiny, TEXTS, cache_uri=str(tmp_path))
    assert calls[0] == "encoding, part 1 of 5"
    found = vectors(tiny, TEXTS, cache_uri=str(tmp_path))
    assert found.num_encoded == 24
    np.testing.assert_allclose(found.vectors, expected, atol=1e-6)


def test_vectors_that_do_not_fit_into_memory_lie_in_a_file(
    tmp_path: Path, tiny: EncoderConfig, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_texts_module, "_IN_MEMORY_BYTES", 100)
    found = vectors(tiny, TEXTS, cache_uri=str(tmp_path)).vectors
    assert isinstance(found, np.memmap)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.slow
def test_two_processes_make_what_one_makes_and_share_the_cache(
    tmp_path: Path, tiny: EncoderConfig, expected: np.ndarray
) -> None:
    cache = str(tmp_path)
    vectors(tiny, TEXTS[:9], cache_uri=cache)
    groups = [
        TextGroup(TEXTS, "passage", "passages"),
        TextGroup(TEXTS[:3], "query", "queries"),
        TextGroup([], "query", "none"),
    ]
    passages, queries, none = encode_texts(tiny, groups, EncodeOptions(2048, cache, num_processes=2))
    np.testing.assert_allclose(passages.vectors, expected, atol=1e-6)
    np.testing.assert_allclose(queries.vectors, vectors(tiny, TEXTS[:3], "query").vectors, atol=1e-6)
    assert none.vectors.shape == (0, expected.shape[1])
    assert (passages.num_encoded, queries.num_encoded, none.num_encoded) == (31, 3, 0)
    assert vectors(tiny, TEXTS, cache_uri=cache).num_encoded == 0


def test_too_short_vectors_are_refused_before_anything_is_encoded(tiny: EncoderConfig) -> None:
    with pytest.raises(InputError, match="the vectors have 32 dimensions, and eval_dimensions has 33"):
        vectors(tiny, TEXTS, min_dimension=33)


def test_a_model_that_finds_no_room_on_the_gpu_is_told_in_one_line(
    tiny: EncoderConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Encoder, *_: Any, **__: Any) -> Encoder:
        raise torch.OutOfMemoryError("simulated")

    monkeypatch.setattr(Encoder, "to", full)
    with pytest.raises(InputError, match=r"does not fit into the accelerator's memory: take a GPU with more memory"):
        vectors(tiny, TEXTS)
