"""The records that the stages of a run leave in the history, and what they say together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A JSON file called ``FILE`` in the folder of a run."""

    model_config = ConfigDict(frozen=True)

    FILE: ClassVar[str]


class CorpusChange(Record):
    """What sdg read, compared with the last run that needs no repetition.

    ``documents_digest`` and ``settings_digest`` tell whether another run does the same work. ``unchanged_since`` names
    the run that did this work already: then this run ended early. ``paid_answers`` counts the answers of an LLM that
    this run paid for, ``reused_documents`` the documents whose answers all came from earlier runs; both are None
    without an LLM.
    """

    FILE = "started.json"

    documents: int
    new: int
    changed: int
    removed: int
    documents_digest: str
    settings_digest: str
    unchanged_since: str | None = None
    compared_with: str | None = None
    paid_answers: int | None = None
    reused_documents: int | None = None

    def summary(self) -> str:
        """Return the counts in one line."""
        text = f"{self.documents} documents"
        if self.compared_with:
            text += f" ({self.new} new, {self.changed} changed, {self.removed} removed)"
        if self.paid_answers is not None:
            text += f", {self.paid_answers} answers paid, {self.reused_documents or 0} documents reused"
        return text


class Verdict(Record):
    """The decision of eval's gate; ``scores`` is ``metric`` by system: base, finetuned, perhaps champion."""

    FILE = "judged.json"

    passed: bool
    reasons: tuple[str, ...]
    metric: str
    queries: int
    scores: dict[str, float]


class Promotion(Record):
    """The model that deploy put into service. With the target gitops it has not yet been seen to answer."""

    FILE = "served.json"

    target: str
    endpoint: str
    digest: str


@dataclass(frozen=True)
class RunRecord:
    """The records of the run ``name``; None for a stage that wrote none."""

    name: str
    corpus: CorpusChange | None = None
    verdict: Verdict | None = None
    promotion: Promotion | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the same documents and settings need no other run: the model is served, or was refused."""
        return self.promotion is not None or (self.verdict is not None and not self.verdict.passed)

    def summary(self) -> str:
        """Return what became of the run in one line."""
        parts = [self.corpus.summary()] if self.corpus else []
        if self.corpus and self.corpus.unchanged_since:
            parts.append(f"unchanged since {self.corpus.unchanged_since}: ended early, nothing was trained")
        elif self.verdict is None:
            parts.append("not finished")
        if self.verdict:
            scores = ", ".join(f"{name} {value:.4f}" for name, value in self.verdict.scores.items())
            parts.append(f"{self.verdict.metric} {scores} on {self.verdict.queries} queries")
            if self.promotion:
                where = self.promotion.endpoint or self.promotion.digest[:12]
                parts.append(f"promoted ({self.promotion.target}): {where}")
            elif self.verdict.passed:
                parts.append("gate passed, not deployed")
            else:
                parts.append("not promoted: " + " ".join(self.verdict.reasons))
        return f"{self.name}: {'; '.join(parts)}"
