"""Whether an exported model gives the checkpoint's vectors, however texts are batched."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass

import numpy as np

from components.core.encoder.config import Kind
from components.core.encoder.model import Encoder, batches_by_length
from components.core.errors import InputError
from components.core.progress import Progress
from components.core.serving.bundle import Probe
from components.core.serving.vector_limits import (
    NORM_TOLERANCE,
    CosineSummary,
    ParityLimits,
    Precision,
    compare_vectors,
    compute_norm_error,
)
from components.export.component import ExportConfig
from components.export.sessions import Session

_ALONE_EVERY = 4
_MIXED_BATCH = 8
# float32 sums differ in the last digits; anything else means that the graph cuts vectors wrongly.
_DIMENSION_ERROR = 1e-3
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class VectorParity:
    """What was measured. ``repeat``: lowest cosine between a probe's vectors in different batches.

    ``dimension_error``: largest difference between vectors that the graph shortened and those shortened afterwards.
    """

    precision: Precision
    closeness: CosineSummary
    repeat: float
    norm_error: float | None
    dimension_error: float | None

    def figures(self) -> dict[str, float]:
        optional = {"largest_norm_error": self.norm_error, "largest_dimension_error": self.dimension_error}
        measured = {name: round(value, 8) for name, value in optional.items() if value is not None}
        return {**self.closeness.to_figures(), "repeat": round(self.repeat, 7), **measured}

    def require(self, limits: ParityLimits) -> None:
        """Raise InputError naming the figures unless all of them are within the limits."""
        figures = ", ".join(f"{name} {value:.6f}" for name, value in self.figures().items())
        _log.info("%s against PyTorch: %s (%s)", self.precision, figures, limits)
        advice = "export in a higher precision, with another opset, or check the checkpoint"
        if not self.closeness.is_within(limits):
            raise InputError(
                f"the exported model does not give the checkpoint's vectors: {figures}; "
                f"{self.precision} needs {limits}: "
                f"{advice}"
            )
        if not self.repeat >= limits.repeat:
            raise InputError(
                f"the exported model's vectors change with the batch: {figures}; repeat must be >= {limits.repeat}: "
                f"{advice}"
            )
        tolerance = NORM_TOLERANCE[self.precision]
        if self.norm_error is not None and not self.norm_error <= tolerance:
            raise InputError(
                f"the exported model's vectors are not of length 1: {figures}; the error may be {tolerance} at most: "
                f"{advice}"
            )
        if self.dimension_error is not None and not self.dimension_error <= _DIMENSION_ERROR:
            raise InputError(
                f"the exported model does not shorten vectors as it should: {figures}; set use_dimension_arg=false"
            )


def measure_vectors(
    session: Session,
    encoder: Encoder,
    probes: list[Probe],
    expected: np.ndarray,
    config: ExportConfig,
    precision: Precision,
) -> VectorParity:
    """Compare the session's vectors of ``probes`` with ``expected``, float32 [probes, dimension].

    Batches: texts of like length together, any eight together, some alone. Not-finite vectors give NaN cosines,
    which pass no limit.
    """
    ids = [encoder.tokenize([probe.text], probe.kind)[0] for probe in probes]
    order = random.Random(config.seed).sample(range(len(ids)), len(ids))
    mixed = [order[start : start + _MIXED_BATCH] for start in range(0, len(order), _MIXED_BATCH)]
    by_length = batches_by_length([len(row) for row in ids], config.encode_batch_tokens)
    alone = list(range(0, len(ids), _ALONE_EVERY))
    with Progress(f"probes by {session.name}", total=2 * len(ids) + len(alone), unit="texts") as progress:
        first = _embed(session, encoder, ids, by_length, progress)
        second = _embed(session, encoder, ids, mixed, progress)
        third = _embed(session, encoder, ids, [[row] for row in alone], progress)
    repeat = min(compare_vectors(first, second).minimum, compare_vectors(first[alone], third[alone]).minimum)
    every = np.concatenate((first, second, third[alone]))
    normalized = encoder.config.l2_normalize
    return VectorParity(
        precision,
        compare_vectors(every, np.concatenate((expected, expected, expected[alone]))),
        repeat,
        compute_norm_error(every) if normalized else None,
        _dimension_error(session, encoder, ids, mixed[0], second) if config.use_dimension_arg else None,
    )


def embed_texts(
    session: Session, encoder: Encoder, texts: list[str], kind: Kind, batch_tokens: int, what: str
) -> np.ndarray:
    """The session's vectors of ``texts``: float32 [texts, dimension]."""
    ids = encoder.tokenize(texts, kind)
    batches = batches_by_length([len(row) for row in ids], batch_tokens)
    with Progress(what, total=len(ids), unit="texts") as progress:
        return _embed(session, encoder, ids, batches, progress)


def _embed(
    session: Session, encoder: Encoder, ids: list[list[int]], batches: list[list[int]], progress: Progress
) -> np.ndarray:
    """Vectors float32 [ids, dimension]; rows in no batch are NaN."""
    vectors = np.full((len(ids), encoder.dimension), np.nan, dtype=np.float32)
    for rows in batches:
        vectors[rows] = session.embed(*_padded(encoder, [ids[row] for row in rows]))
        progress.add(len(rows))
    return vectors


def _padded(encoder: Encoder, ids: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    padded, mask = (tensor.cpu().numpy() for tensor in encoder.batch(ids))
    return padded, mask


def _dimension_error(
    session: Session, encoder: Encoder, ids: list[list[int]], rows: list[int], whole: np.ndarray
) -> float:
    """Of the batch ``rows`` at half the dimension, against its ``whole`` vectors."""
    half = encoder.dimension // 2
    shortened = session.embed(*_padded(encoder, [ids[row] for row in rows]), dimension=half)
    expected = whole[rows, :half]
    if encoder.config.l2_normalize:
        expected = expected / np.linalg.norm(expected, axis=1, keepdims=True)
    if shortened.shape != expected.shape:
        return float("inf")
    return float(np.abs(shortened - expected).max())
