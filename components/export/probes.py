"""Texts whose vectors identify a model: of the domain, of every length, and odd ones."""

from __future__ import annotations

import importlib.resources
import random
from itertools import cycle, islice
from pathlib import Path

from components.core.encoder.config import Kind
from components.core.encoder.model import Encoder
from components.core.retrieval.beir_data import read_beir
from components.core.serving.bundle import Probe
from components.export.component import ExportConfig

_SHORTEST_CLASS = 8
# One text in four is odd: scripts, signs and code that a domain's own texts seldom hold.
_ODD_EVERY = 4


def choose_probes(encoder: Encoder, config: ExportConfig, eval_data: Path | None) -> list[Probe]:
    """``num_probes`` texts, half queries, half passages, from ``eval_data`` and from the list shipped with export.

    Each half covers every class of length (in tokens, doubling) up to the longest that the model takes, and one
    text beyond it. The same inputs give the same probes.
    """
    rng = random.Random(config.seed)
    odd = read_odd_texts()
    if eval_data is None:
        queries = passages = odd
    else:
        data = read_beir(eval_data)
        queries, passages = list(data.queries.values()), list(data.corpus.values())
    half = config.num_probes // 2
    return [
        *(Probe("query", text) for text in _choose(encoder, "query", queries, odd, config.num_probes - half, rng)),
        *(Probe("passage", text) for text in _choose(encoder, "passage", passages, odd, half, rng)),
    ]


def _choose(
    encoder: Encoder, kind: Kind, domain: list[str], odd: list[str], count: int, rng: random.Random
) -> list[str]:
    """Texts of every length class, longest first, then odd ones and whole texts of the domain."""
    domain = [text for text in dict.fromkeys(domain) if text.strip()]
    domain = rng.sample(domain, len(domain))
    words = list(dict.fromkeys(word for text in [*domain[:count], *odd] for word in text.split()))
    longest = encoder.config.max_length(kind)
    chosen = [_beyond(words, longest), *(_of_length(encoder, kind, words, limit) for limit in _classes(longest))]
    odd = rng.sample(odd, len(odd))
    whole = [odd.pop() if odd and place % _ODD_EVERY == 0 else text for place, text in enumerate(domain)]
    probes = dict.fromkeys([*chosen, *whole, *odd])
    while len(probes) < count:
        probes[" ".join(rng.choices(words, k=rng.randint(1, longest)))] = None
    return list(probes)[:count]


def _classes(longest: int) -> list[int]:
    """Upper bounds of the length classes, longest first."""
    bounds = [longest]
    while bounds[-1] > _SHORTEST_CLASS:
        bounds.append(bounds[-1] // 2)
    return bounds


def _of_length(encoder: Encoder, kind: Kind, words: list[str], limit: int) -> str:
    """Words of the domain that make more than half of ``limit`` tokens where one can, and never more."""
    rotated = islice(cycle(words), limit, None)
    taken = list(islice(rotated, limit))
    while len(taken) > 1 and _tokens(encoder, kind, taken) > limit:
        taken.pop()
    return " ".join(taken)


def _tokens(encoder: Encoder, kind: Kind, words: list[str]) -> int:
    return len(encoder.tokenizer(encoder.config.prefix(kind) + " ".join(words))["input_ids"])


def _beyond(words: list[str], longest: int) -> str:
    """A text that must be cut: every word is a token at least."""
    return " ".join(islice(cycle(words), longest + _SHORTEST_CLASS))


def read_odd_texts() -> list[str]:
    """Scripts, signs and code: a list that this package ships."""
    text = importlib.resources.files("components.export").joinpath("probes.txt").read_text(encoding="utf-8")
    return [line for line in text.split("\n") if line.strip()]
