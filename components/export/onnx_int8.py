"""8-bit integer matrix products for CPUs, as ONNX Runtime computes them."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper
from onnxruntime.quantization.shape_inference import quant_pre_process

from components.core.errors import InputError
from components.export.onnx_graph import EMBEDDED_LIMIT_BYTES, MODEL_FILE, compute_megabytes

_LARGEST_INPUT = 127
# Seven bits: x86 CPUs without VNNI add two products of bytes in 16 bits, and with eight they cut sums off. The vectors
# would depend on the CPU, and the proof would hold on none but the one that export ran on.
_LARGEST_WEIGHT = 63
_LEAST_SCALE = 1e-9
_STEP, _MIDDLE, _LAST_AXIS, _LEAST = "int8_step", "int8_middle", "int8_last_axis", "int8_least"
_CONTRIB = "com.microsoft"
_log = logging.getLogger(__name__)


def quantize_weights(directory: Path) -> None:
    """Replace ``directory``'s float32 graph by one whose linear layers multiply 8-bit integers.

    Weights are scaled per output channel, inputs per token by that token's largest value, while the model runs (as
    LLM.int8() does, Dettmers et al., 2022, arXiv:2208.07339). ONNX Runtime's own dynamic quantisation scales inputs
    by the largest value of the whole batch: there a text's vector depends on the texts beside it.
    Raises InputError when there is no linear layer.
    """
    started = time.monotonic()
    source, prepared = directory / MODEL_FILE, directory / "prepared.onnx"
    large = compute_megabytes(directory) * 1e6 > EMBEDDED_LIMIT_BYTES
    with _quiet():
        quant_pre_process(
            source, prepared, skip_symbolic_shape=True, save_as_external_data=large, all_tensors_to_one_file=large
        )
    for path in directory.glob(f"{MODEL_FILE}*"):
        path.unlink()
    model = onnx.load(prepared)
    for path in directory.glob("prepared*"):
        path.unlink()
    count = _replace_products(model)
    if not count:
        raise InputError("quant_cfg=int8: this model has no layer that can be quantised: leave it out")
    onnx.save(model, source, save_as_external_data=large, location=f"{MODEL_FILE}.data")
    _log.info("%d layers quantised in %.1f s: %.0f MB", count, time.monotonic() - started, compute_megabytes(directory))


def _replace_products(model: onnx.ModelProto) -> int:
    """Put 8-bit products in the place of all those with a matrix of weights; return how many."""
    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer if len(tensor.dims) == 2}
    nodes: list[NodeProto] = []
    scaled: set[str] = set()
    replaced: set[str] = set()
    count = 0
    for node in graph.node:
        if node.op_type != "MatMul" or node.input[1] not in weights:
            nodes.append(node)
            continue
        values, weight = node.input
        if values not in scaled:
            nodes += _rounding(values)
            scaled.add(values)
        if weight not in replaced:
            graph.initializer.extend(_rounded(weight, numpy_helper.to_array(weights[weight])))
            replaced.add(weight)
        nodes += _product(node.name, values, weight, node.output[0])
        count += 1
    graph.initializer.extend(_constants())
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if _CONTRIB not in [entry.domain for entry in model.opset_import]:
        model.opset_import.append(helper.make_opsetid(_CONTRIB, 1))
    return count


def _constants() -> list[onnx.TensorProto]:
    constants = {
        _STEP: np.float32(1 / _LARGEST_INPUT),
        _MIDDLE: np.uint8(128),
        _LAST_AXIS: np.array([-1], dtype=np.int64),
        _LEAST: np.float32(_LEAST_SCALE),
    }
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]


def _rounding(values: str) -> list[NodeProto]:
    """``values`` [batch, length, in] -> its bytes, and the largest of each token [batch, length, 1]."""
    high, low, minus_low, largest, unit = (
        f"{values}_{what}" for what in ("high", "low", "minus_low", "largest", "unit")
    )
    return [
        helper.make_node("ReduceMax", [values, _LAST_AXIS], [high], keepdims=1),
        helper.make_node("ReduceMin", [values, _LAST_AXIS], [low], keepdims=1),
        helper.make_node("Neg", [low], [minus_low]),
        helper.make_node("Max", [high, minus_low, _LEAST], [largest]),
        helper.make_node("Div", [values, largest], [unit]),
        helper.make_node("QuantizeLinear", [unit, _STEP, _MIDDLE], [f"{values}_bytes"]),
    ]


def _rounded(name: str, weight: np.ndarray) -> list[onnx.TensorProto]:
    """``weight`` [in, out] as bytes, with the scale of each output channel and zeros that the operator asks for."""
    weight = weight.astype(np.float32)
    scale = np.maximum(np.abs(weight).max(axis=0), _LEAST_SCALE) / _LARGEST_WEIGHT
    parts = {
        "bytes": np.clip(np.round(weight / scale), -_LARGEST_WEIGHT, _LARGEST_WEIGHT).astype(np.int8),
        "scale": scale.astype(np.float32),
        "zero": np.zeros(weight.shape[1], dtype=np.int8),
    }
    return [numpy_helper.from_array(array, f"{name}_{part}") for part, array in parts.items()]


def _product(name: str, values: str, weight: str, output: str) -> list[NodeProto]:
    inputs = [f"{values}_bytes", f"{weight}_bytes", _STEP, f"{weight}_scale", _MIDDLE, f"{weight}_zero"]
    product = f"{output}_unscaled"
    return [
        helper.make_node("MatMulIntegerToFloat", inputs, [product], name=f"{name}_int8", domain=_CONTRIB),
        helper.make_node("Mul", [product, f"{values}_largest"], [output]),
    ]


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
