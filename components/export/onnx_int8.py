"""8-bit integer matrix products for CPUs, by ONNX Runtime."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.shape_inference import quant_pre_process

from components.export.onnx_graph import EMBEDDED_LIMIT_BYTES, MODEL_FILE, megabytes

_log = logging.getLogger(__name__)


def quantize_weights(directory: Path) -> None:
    """Replace ``directory``'s float32 graph by one whose matrix products take int8 weights, scaled per channel.

    Activations are scaled by each batch's largest value (dynamic quantisation): one scale for all texts, even when
    calibrated on the user's, costs far more (static, all-MiniLM-L6-v2: mean cosine 0.82 instead of 0.994).
    """
    started = time.monotonic()
    source, prepared = directory / MODEL_FILE, directory / "prepared.onnx"
    large = megabytes(directory) * 1e6 > EMBEDDED_LIMIT_BYTES
    with _quiet():
        quant_pre_process(
            source, prepared, skip_symbolic_shape=True, save_as_external_data=large, all_tensors_to_one_file=large
        )
        for path in directory.glob(f"{MODEL_FILE}*"):
            path.unlink()
        quantize_dynamic(
            prepared,
            source,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=large,
        )
    for path in directory.glob("prepared*"):
        path.unlink()
    _log.info("weights quantised in %.1f s: %.0f MB", time.monotonic() - started, megabytes(directory))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """It prints, and advises what was just done."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)
