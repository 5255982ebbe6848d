"""Probes: half queries, every length, the same again."""

from __future__ import annotations

import pytest

from components.core.encoder.checkpoint import load_checkpoint
from components.core.encoder.model import Encoder
from components.core.serving.bundle import read_bundle
from components.export.component import ExportConfig
from components.export.probes import choose_probes
from tests.exported import Exported

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def encoder(minilm: Exported) -> Encoder:
    return load_checkpoint(minilm.checkpoint)


@pytest.mark.parametrize("kind", ["query", "passage"])
@pytest.mark.parametrize("brought", [True, False], ids=["eval_data", "shipped"])
def test_every_length_is_covered(minilm: Exported, encoder: Encoder, kind: str, brought: bool) -> None:
    probes = choose_probes(encoder, ExportConfig(), minilm.eval_data if brought else None)
    lengths = [len(encoder.tokenizer(probe.text)["input_ids"]) for probe in probes if probe.kind == kind]
    longest = encoder.config.max_length(kind)
    assert len(lengths) == 32
    assert max(lengths) > longest
    bound = longest
    while bound >= 8:
        assert any(bound / 2 < length <= bound for length in lengths), bound
        bound //= 2


def test_probes_come_from_the_evaluation_data(minilm: Exported) -> None:
    bundle = read_bundle(minilm.bundle)
    for kind, words in (("query", "how to fit valve"), ("passage", "of the manual says how to fit valve")):
        assert sum(probe.kind == kind and words in probe.text for probe in bundle.probes) >= 6


def test_the_same_inputs_give_the_same_probes(minilm: Exported, encoder: Encoder) -> None:
    first, again, other = (choose_probes(encoder, ExportConfig(seed=seed), minilm.eval_data) for seed in (1, 1, 2))
    assert first == again != other


def test_no_probe_is_there_twice(minilm: Exported, encoder: Encoder) -> None:
    for probes in (choose_probes(encoder, ExportConfig(num_probes=200), None), read_bundle(minilm.bundle).probes):
        assert len(set(probes)) == len(probes)


def test_an_odd_or_small_number_is_possible(encoder: Encoder) -> None:
    for count in (8, 9):
        assert len(choose_probes(encoder, ExportConfig(num_probes=count), None)) == count
