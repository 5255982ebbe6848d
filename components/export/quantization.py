"""8-bit matrix products for GPUs: calibrated by NVIDIA ModelOpt, written as Q/DQ nodes that TensorRT and NIM read."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import logging
import random
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from onnxscript import opset20 as op
from torch import Tensor, nn

from components.core.encoder.config import Kind
from components.core.encoder.model import Encoder
from components.core.errors import ActionNeeded, InputError
from components.core.progress import track
from components.core.retrieval.beir_data import read_beir
from components.export.component import ExportConfig
from components.export.probes import read_odd_texts

Scheme = Literal["fp8", "int8_sq"]
_CONFIGS: dict[Scheme, str] = {"fp8": "FP8_DEFAULT_CFG", "int8_sq": "INT8_SMOOTHQUANT_CFG"}
_KINDS: dict[Scheme, torch.dtype] = {"fp8": torch.float8_e4m3fn, "int8_sq": torch.int8}
_LARGEST: dict[torch.dtype, float] = {torch.float8_e4m3fn: 448.0, torch.int8: 127.0}
_log = logging.getLogger(__name__)


def choose_calibration_texts(
    config: ExportConfig, eval_data: Path | None, not_these: list[str]
) -> list[tuple[Kind, str]]:
    """Queries and passages of the user's, half of each where there are enough, and odd texts; none of ``not_these``.

    Odd texts have the largest activations: scales that never saw one cut them off. Raises InputError without
    ``eval_data``: other texts have other activations, and the scales would be theirs.
    """
    if eval_data is None:
        raise InputError(f"quant_cfg={config.quant_cfg} is calibrated on your own texts: give eval_data")
    data = read_beir(eval_data)
    rng = random.Random(config.seed)
    kept = set(not_these)
    # A small test set has no other queries.
    queries = [text for text in data.queries.values() if text not in kept] or list(data.queries.values())
    passages = [text for text in data.corpus.values() if text not in kept]
    odd = [text for text in read_odd_texts() if text not in kept]
    asked = rng.sample(queries, min(len(queries), config.calibration_texts // 2))
    sampled = rng.sample(passages, min(len(passages), config.calibration_texts - len(asked)))
    return [*(("query", text) for text in asked), *(("passage", text) for text in [*sampled, *odd])]


def quantize(encoder: Encoder, scheme: Scheme, texts: list[tuple[Kind, str]], batch_size: int) -> None:
    """Replace the linear layers of ``encoder``, in place, by 8-bit ones whose scales fit ``texts``.

    ``fp8``: E4M3, one scale per tensor (Micikevicius et al., 2022, arXiv:2209.05433). ``int8_sq``: SmoothQuant (Xiao et
    al., 2022, arXiv:2211.10438), weights scaled per channel. Raises ActionNeeded when ModelOpt is not installed.
    """
    mtq = load_modelopt()
    started = time.monotonic()
    batches = list(_batches(encoder, texts, batch_size))
    # ModelOpt changes every module's class; only the scales and smoothed weights of linear layers are taken from it.
    measured = copy.deepcopy(encoder)

    @torch.inference_mode()
    def calibrate(_: nn.Module) -> None:
        for ids, mask in track(batches, "calibrating", unit="batches"):
            measured(ids, mask)

    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        mtq.quantize(measured.backbone, getattr(mtq, _CONFIGS[scheme]), calibrate)
    replaced = _replace(encoder.backbone, dict(measured.backbone.named_modules()), _KINDS[scheme])
    _log.info("%d layers quantised (%s) in %.1f s", replaced, scheme, time.monotonic() - started)


def load_modelopt() -> Any:
    """ModelOpt's quantisation of torch models. Raises ActionNeeded when it is not installed."""
    try:
        return importlib.import_module("modelopt.torch.quantization")
    except ImportError as error:
        raise ActionNeeded(
            f"quant_cfg needs NVIDIA ModelOpt ({error}): pip install '.[quantization]', as the export image has it"
        ) from None


def _batches(encoder: Encoder, texts: list[tuple[Kind, str]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Of like length: padding is computed with, too, and would count among the activations."""
    ids = sorted((encoder.tokenize([text], kind)[0] for kind, text in texts), key=len)
    for start in range(0, len(ids), size):
        yield encoder.batch(ids[start : start + size])


def _replace(model: nn.Module, measured: dict[str, Any], kind: torch.dtype) -> int:
    """Put a ``QuantizedLinear`` in the place of every linear layer that ``measured`` has scales of; return how many."""
    count = 0
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear):
            continue
        calibrated = measured[name]
        quantizers = (calibrated.input_quantizer, calibrated.weight_quantizer)
        # Without a largest input no text has passed through, as through a pooler that is not used.
        if all(quantizer.is_enabled and quantizer.amax is not None for quantizer in quantizers):
            model.set_submodule(name, QuantizedLinear.of(calibrated, kind))
            count += 1
    if not count:
        raise InputError("quant_cfg: this model has no layer that can be quantised: leave it out")
    return count


class QuantizedLinear(nn.Module):
    """A linear layer with weights of 8 bits, whose inputs are rounded to 8 bits, too.

    ``weight``: int8 or float8 [in, out]; ``weight_scale``: [out] or []; ``input_scale``: []; ``smoothing`` [in], by
    which inputs are multiplied first, or None.
    """

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor
    smoothing: Tensor | None
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, weight_scale: Tensor, input_scale: Tensor, smoothing: Tensor | None, bias: Tensor | None
    ) -> None:
        super().__init__()
        for name, tensor in (("weight", weight), ("weight_scale", weight_scale), ("input_scale", input_scale)):
            self.register_buffer(name, tensor)
        self.register_buffer("smoothing", smoothing)
        self.register_buffer("bias", bias)

    @classmethod
    def of(cls, layer: Any, kind: torch.dtype) -> QuantizedLinear:
        """``layer`` is ModelOpt's, calibrated: its largest values become scales, its weights are rounded."""
        largest = _LARGEST[kind]
        weight_scale = (layer.weight_quantizer.amax.detach().float() / largest).squeeze()
        input_scale = (layer.input_quantizer.amax.detach().float() / largest).squeeze()
        smoothing = getattr(layer.input_quantizer, "pre_quant_scale", None)
        bias = None if layer.bias is None else layer.bias.detach()
        weight = _round(layer.weight.detach().float().T.contiguous(), weight_scale, kind)
        return cls(weight, weight_scale, input_scale, None if smoothing is None else smoothing.detach(), bias)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantizedLinear:
        """Half precision is for the scales; the weights keep their 8 bits."""
        weight: Tensor = self.weight
        super()._apply(fn, recurse)
        self.weight = weight.to(self.weight.device)
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        if self.smoothing is not None:
            inputs = inputs * self.smoothing
        quantized = torch.ops.nemotron_embed.quantize(inputs, self.input_scale, self.weight.dtype)
        rounded = torch.ops.nemotron_embed.dequantize(quantized, self.input_scale)
        weight = torch.ops.nemotron_embed.dequantize(self.weight, self.weight_scale)
        product = rounded @ weight
        return product if self.bias is None else product + self.bias


def _round(values: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    """``values`` [..., n] over ``scale`` [n] or [], in 8 bits: ties to even, what is too large becomes the largest."""
    scaled = (values / scale).clamp(-_LARGEST[kind], _LARGEST[kind])
    return (scaled.round() if kind == torch.int8 else scaled).to(kind)


@torch.library.custom_op("nemotron_embed::quantize", mutates_args=())
def _quantize(values: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:
    return _round(values, scale, kind)


@_quantize.register_fake
def _(values: Tensor, scale: Tensor, kind: torch.dtype) -> Tensor:  # noqa: ARG001
    return torch.empty_like(values, dtype=kind)


@torch.library.custom_op("nemotron_embed::dequantize", mutates_args=())
def _dequantize(values: Tensor, scale: Tensor) -> Tensor:
    return values.to(scale.dtype) * scale


@_dequantize.register_fake
def _(values: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(values, dtype=scale.dtype)


def _quantize_node(values: Any, scale: Any, kind: int) -> Any:
    # The type of the zero point is that of the result.
    zero: Any = op.Constant(value=onnx.helper.make_tensor("zero", kind, [], [0.0]))
    return op.QuantizeLinear(values, scale, zero)


def _dequantize_node(values: Any, scale: Any) -> Any:
    return op.DequantizeLinear(values, scale, axis=1)


# How the exporter writes the two operators: TensorRT takes precisions from such nodes, and from nothing else.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.nemotron_embed.quantize.default: _quantize_node,
    torch.ops.nemotron_embed.dequantize.default: _dequantize_node,
}
