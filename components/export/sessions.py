"""What computes with an exported model, one way to call each."""

from __future__ import annotations

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
