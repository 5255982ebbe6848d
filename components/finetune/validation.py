"""nDCG@10 on the val split while training: which weights are the best, and when to stop."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytrec_eval
import torch
from torch import Tensor

from components.core.encoder.model import Encoder
from components.core.errors import InputError

VAL_FILE = "val.json"
DEPTH = 10
# Texts encoded at a time: seconds of work, so that a hang is told from a large set.
_PIECE = 2048

Encode = Callable[[Sequence[list[int]]], Tensor]


@dataclass(frozen=True)
class ValData:
    """Questions, the passages searched for them, and for each question the ids of those that answer it."""

    queries: list[str]
    passages: dict[str, str]
    answers: list[list[str]]


def read_validation(directory: Path, passages: dict[str, str], others: int, seed: int) -> ValData | None:
    """The questions of ``val.json`` over their answers and ``others`` more of ``passages``, drawn with ``seed``.

    None when there is no such file or no question in it. Raises InputError for what is no val split.
    """
    path = directory / VAL_FILE
    if not path.is_file():
        return None
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["data"]
        questions = [(str(row["question"]), [str(entry["id"]) for entry in row["pos_doc"]]) for row in rows]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f'{path}: expected {{"data": [{{"question": ..., "pos_doc": [{{"id": ...}}]}}]}}') from None
    for number, (question, answers) in enumerate(questions):
        if not question.strip() or not answers:
            raise InputError(f"{path}: data[{number}] has no question or no positive: remove it")
        for name in answers:
            if not isinstance(passages.get(name), str):
                raise InputError(f"{path}: data[{number}] names the passage {name!r}, which the corpus does not hold")
    if not questions:
        return None
    needed = dict.fromkeys(name for _, answers in questions for name in answers)
    rest = [name for name in passages if name not in needed]
    drawn = rest if len(rest) <= others else random.Random(seed).sample(rest, others)
    searched = {name: passages[name] for name in [*needed, *drawn]}
    return ValData([question for question, _ in questions], searched, [answers for _, answers in questions])


class Validation:
    """The val split as token ids."""

    def __init__(self, data: ValData, encoder: Encoder) -> None:
        self.data = data
        self._queries = encoder.tokenize(data.queries, "query")
        self._passages = encoder.tokenize(list(data.passages.values()), "passage")
        judged = {str(row): dict.fromkeys(names, 1) for row, names in enumerate(data.answers)}
        self._measure = pytrec_eval.RelevanceEvaluator(judged, {f"ndcg_cut.{DEPTH}"})

    def ndcg(self, encode: Encode, beat: Callable[[], None]) -> float:
        """Mean nDCG@10 of the vectors that ``encode`` makes of token ids (float32 [n, d], on any device).

        ``beat`` is called between pieces of work.
        """
        passages = _in_pieces(encode, self._passages, beat)
        names = list(self.data.passages)
        run: dict[str, dict[str, float]] = {}
        for start in range(0, len(self._queries), _PIECE):
            queries = _in_pieces(encode, self._queries[start : start + _PIECE], beat)
            top = (queries @ passages.T).topk(min(DEPTH, len(names)), dim=1)
            for row, (scores, places) in enumerate(zip(top.values.tolist(), top.indices.tolist(), strict=True)):
                run[str(start + row)] = {names[p]: score for p, score in zip(places, scores, strict=True)}
        values = [figures[f"ndcg_cut_{DEPTH}"] for figures in self._measure.evaluate(run).values()]
        return round(sum(values) / len(values), 6)

    def digest(self) -> str:
        """sha256 (hex) of questions, passages and token ids."""
        content = [self.data.queries, self.data.answers, list(self.data.passages), self._queries, self._passages]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclass
class Selection:
    """Values of the validations so far, (step, nDCG@10), and the weights of the best one after some training.

    Of equal values the earlier is the best. Step 0 is the base model: shown, and never the result.
    """

    history: list[tuple[int, float]] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)

    def add(self, step: int, value: float, weights: Callable[[], dict[str, Tensor]]) -> None:
        """Note a validation; ``weights`` is called when it is the best."""
        self.history.append((step, value))
        if self.best_step == step and step > 0:
            self.weights = weights()

    @property
    def best(self) -> float | None:
        """The best value of a trained model; None before the first."""
        return max((value for step, value in self.history if step > 0), default=None)

    @property
    def best_step(self) -> int:
        """The first step that reached it; 0 before the first."""
        return next((step for step, value in self.history if step > 0 and value == self.best), 0)

    def stale(self) -> int:
        """Validations since the best one."""
        return sum(step > self.best_step for step, _ in self.history if self.best_step)

    def about(self) -> list[Any]:
        """The history as JSON."""
        return [list(pair) for pair in self.history]


def _in_pieces(encode: Encode, ids: Sequence[list[int]], beat: Callable[[], None]) -> Tensor:
    parts = []
    for start in range(0, len(ids), _PIECE):
        parts.append(encode(ids[start : start + _PIECE]))
        beat()
    return torch.cat(parts)
