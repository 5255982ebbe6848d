"""Whether the exported model gives the checkpoint's vectors, however texts are batched."""

from __future__ import annotations

import logging
import random
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from components.core.bundle import Probe
from components.core.encoder.model import Encoder, batches_by_length
from components.core.errors import InputError
from components.core.parity import LIMITS, NORM_TOLERANCE, Closeness, Precision, closeness, largest_norm_error
from components.export.component import ExportConfig
from components.export.onnx_graph import INPUTS, OUTPUT

_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
_ALONE_EVERY = 4
_MIXED_BATCH = 8
_SHAPES = ((1, 32), (16, 128))
_RUNS = 3
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parity:
    """What was measured. ``repeat``: lowest cosine between a probe's vectors in different batches."""

    precision: Precision
    closeness: Closeness
    repeat: float
    norm_error: float | None

    def figures(self) -> dict[str, float]:
        norm = {} if self.norm_error is None else {"largest_norm_error": self.norm_error}
        return {**self.closeness.figures(), "repeat": round(self.repeat, 7), **norm}

    def require(self) -> None:
        """Raise InputError naming the figures unless all of them are within the limits."""
        limits = LIMITS[self.precision]
        found = ", ".join(f"{name} {value:.6f}" for name, value in self.figures().items())
        _log.info("ONNX against PyTorch: %s", found)
        if not self.closeness.within(limits):
            raise InputError(
                f"the exported model does not give the checkpoint's vectors: {found}; {self.precision} needs {limits}: "
                f"export in fp32, with another opset, or check the checkpoint"
            )
        if not self.repeat >= limits.repeat:
            raise InputError(
                f"the exported model's vectors change with the batch: {found}; repeat must be >= {limits.repeat}: "
                f"export in fp32 or with another opset"
            )
        if self.norm_error is not None and not self.norm_error <= NORM_TOLERANCE[self.precision]:
            raise InputError(
                f"the exported model's vectors are not of length 1: {found}; "
                f"the error may be {NORM_TOLERANCE[self.precision]} at most: export in fp32 or with another opset"
            )


def open_session(model: Path) -> onnxruntime.InferenceSession:
    """ONNX Runtime on a GPU when it can use one, else on the CPU."""
    usable = [name for name in _PROVIDERS if name in onnxruntime.get_available_providers()]
    return onnxruntime.InferenceSession(model, providers=usable)


def measure(
    session: onnxruntime.InferenceSession,
    encoder: Encoder,
    probes: list[Probe],
    expected: np.ndarray,
    config: ExportConfig,
) -> Parity:
    """Compare the session's vectors of ``probes`` with ``expected``, float32 [probes, dimension].

    Batches: texts of like length together, any eight together, some alone. Not-finite vectors give NaN cosines,
    which pass no limit.
    """
    ids = [encoder.tokenize([probe.text], probe.kind)[0] for probe in probes]
    order = random.Random(config.seed).sample(range(len(ids)), len(ids))
    mixed = [order[start : start + _MIXED_BATCH] for start in range(0, len(order), _MIXED_BATCH)]
    by_length = batches_by_length([len(row) for row in ids], config.encode_batch_tokens)
    alone = list(range(0, len(ids), _ALONE_EVERY))
    first = _embed(session, encoder, ids, by_length, expected)
    second = _embed(session, encoder, ids, mixed, expected)
    third = _embed(session, encoder, ids, [[row] for row in alone], expected)
    repeat = min(closeness(first, second).minimum, closeness(first[alone], third[alone]).minimum)
    every = np.concatenate((first, second, third[alone]))
    return Parity(
        config.export_dtype,
        closeness(every, np.concatenate((expected, expected, expected[alone]))),
        repeat,
        largest_norm_error(every) if encoder.config.l2_normalize else None,
    )


def _embed(
    session: onnxruntime.InferenceSession,
    encoder: Encoder,
    ids: list[list[int]],
    batches: list[list[int]],
    like: np.ndarray,
) -> np.ndarray:
    """Vectors in the shape of ``like``; rows in no batch are NaN."""
    vectors = np.full_like(like, np.nan)
    for rows in batches:
        inputs = zip(INPUTS, encoder.batch([ids[row] for row in rows]), strict=True)
        vectors[rows] = session.run([OUTPUT], {name: tensor.numpy() for name, tensor in inputs})[0]
    return vectors


def latency(session: onnxruntime.InferenceSession, encoder: Encoder) -> dict[str, float]:
    """Median milliseconds of one call, for batches of 1 x 32 and 16 x 128 tokens."""
    tokens = encoder.tokenize(["word " * encoder.config.passage_max_length], "passage")[0]
    found = {}
    for batch, length in _SHAPES:
        ids = np.array([tokens[:length]] * batch, dtype=np.int64)
        inputs = dict(zip(INPUTS, (ids, np.ones_like(ids)), strict=True))
        seconds = []
        for _ in range(_RUNS + 1):
            started = time.perf_counter()
            session.run([OUTPUT], inputs)
            seconds.append(time.perf_counter() - started)
        found[f"latency_{batch}x{ids.shape[1]}_ms"] = round(1000 * statistics.median(seconds[1:]), 2)
    return found
