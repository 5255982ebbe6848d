"""Sessions that compute with a model in one of its formats, and how fast they answer."""

from __future__ import annotations

import logging
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime
import torch

from components.core.encoder.model import Encoder
from components.core.errors import InputError

INPUTS = ("input_ids", "attention_mask")
DIMENSIONS = "dimensions"
OUTPUT = "embeddings"
_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
# One short query; the batch that the recipe tunes its engine for; the largest it allows.
SHAPES = ((1, 32), (16, 128), (64, 256))
_RUNS = 5
# On a CPU the largest shape of a large model takes minutes.
_LONGEST_CALL_SECONDS = 10.0
_PATIENCE_SECONDS = 2.0
_log = logging.getLogger(__name__)


class Session(Protocol):
    """A model ready to compute. ``name`` says what it is and on what it runs."""

    name: str

    def embed(self, ids: np.ndarray, mask: np.ndarray, dimension: int | None = None) -> np.ndarray:
        """int64 [batch, length] twice -> float32 [batch, ``dimension``], by default the whole vectors."""


class OnnxSession:
    """ONNX Runtime on a GPU when it can use one, else on the CPU. Raises InputError when it cannot load ``model``."""

    def __init__(self, model: Path, dimension: int) -> None:
        usable = [name for name in _PROVIDERS if name in onnxruntime.get_available_providers()]
        try:
            self._session = onnxruntime.InferenceSession(model, providers=usable)
        except Exception as error:
            raise InputError(
                f"ONNX Runtime cannot load the exported model ({error}): change opset or quant_cfg"
            ) from None
        on_gpu = self._session.get_providers()[0].startswith("CUDA")
        self.name = f"ONNX Runtime {onnxruntime.__version__} on the {'GPU' if on_gpu else 'CPU'}"
        self._dimension = dimension
        self._takes_dimensions = DIMENSIONS in [value.name for value in self._session.get_inputs()]

    def embed(self, ids: np.ndarray, mask: np.ndarray, dimension: int | None = None) -> np.ndarray:
        inputs = dict(zip(INPUTS, (ids, mask), strict=True))
        if self._takes_dimensions:
            inputs[DIMENSIONS] = np.full(len(ids), dimension or self._dimension, dtype=np.int64)
        return self._session.run([OUTPUT], inputs)[0]


class TorchSession:
    """The checkpoint itself, where ``encoder`` is."""

    def __init__(self, encoder: Encoder) -> None:
        self.name = f"PyTorch {torch.__version__} on the {'GPU' if encoder.device.type == 'cuda' else 'CPU'}"
        self._encoder = encoder

    @torch.inference_mode()
    def embed(self, ids: np.ndarray, mask: np.ndarray, dimension: int | None = None) -> np.ndarray:
        tensors = (torch.from_numpy(array).to(self._encoder.device) for array in (ids, mask))
        vectors = self._encoder(*tensors)[:, : dimension or self._encoder.dimension]
        return vectors.float().cpu().numpy()


@dataclass(frozen=True)
class Latency:
    """Median time of one call with ``batch`` texts of ``length`` tokens."""

    batch: int
    length: int
    milliseconds: float

    @property
    def tokens_per_second(self) -> float:
        return round(1000 * self.batch * self.length / self.milliseconds, 1)


def measure_latency(session: Session, longest: int, token: int) -> list[Latency]:
    """Of the shapes up to ``longest`` tokens, made of ``token``; those that would take too long are left out."""
    latencies: list[Latency] = []
    for batch, length in SHAPES:
        length = min(length, longest)
        if latencies and latencies[-1].milliseconds * batch * length / (latencies[-1].batch * latencies[-1].length) > (
            1000 * _LONGEST_CALL_SECONDS
        ):
            _log.info("%s: %d x %d tokens not measured, it would take too long", session.name, batch, length)
            break
        ids = np.full((batch, length), token, dtype=np.int64)
        latencies.append(Latency(batch, length, _median_ms(session, ids)))
        _log.info("%s: %d x %d tokens in %.2f ms", session.name, batch, length, latencies[-1].milliseconds)
    return latencies


def _median_ms(session: Session, ids: np.ndarray) -> float:
    mask = np.ones_like(ids)
    seconds: list[float] = []
    session.embed(ids, mask)
    begun = time.perf_counter()
    while len(seconds) < _RUNS and (not seconds or time.perf_counter() - begun < _PATIENCE_SECONDS):
        started = time.perf_counter()
        session.embed(ids, mask)
        seconds.append(time.perf_counter() - started)
    return round(1000 * statistics.median(seconds), 3)
