"""The encoder as an ONNX graph: ids and mask in, finished vectors out."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import onnx
import onnx_ir
import torch
from onnxscript import opset20 as op
from onnxscript.function_libs.torch_lib.ops.nn import aten_scaled_dot_product_attention
from torch import nn

from components.core.encoder.model import Encoder
from components.core.errors import InputError
from components.export.sessions import DIMENSIONS, INPUTS, OUTPUT

MODEL_FILE = "model.onnx"
# A protobuf ends at 2 GiB; beyond this the weights go to model.onnx.data, one file beside the graph.
EMBEDDED_LIMIT_BYTES = 1_500_000_000
_EXAMPLE = ("a text", "another text that is somewhat longer")
_AXES = {0: "batch", 1: "length"}
_log = logging.getLogger(__name__)


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """The exporter's own attention, with a boolean mask as numbers to add to the scores.

    For a boolean mask the exporter looks for NaN in each layer, which takes a CPU a tenth of its time. There
    are none: half of the least number never overflows when a score is added, and each text has a token to attend to.
    """
    if attn_mask is not None and attn_mask.dtype == onnx_ir.DataType.BOOL:
        # onnxscript declares the tensors of the onnx package here, and takes those of onnx_ir.
        zero: Any = op.Constant(value=cast(Any, onnx_ir.tensor(0.0, dtype=query.dtype)))
        masked: Any = op.Constant(value=cast(Any, onnx_ir.tensor(query.dtype.min / 2, dtype=query.dtype)))
        attn_mask = op.Where(attn_mask, zero, masked)
    return aten_scaled_dot_product_attention(
        query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )


# From this opset on attention is an operator of its own.
_ATTENTION_OPSET = 23


class _Shortened(nn.Module):
    """The encoder with a third input: how many values of each vector are kept.

    The result is as wide as the longest vector of the batch; what is shorter ends in zeros. A Matryoshka model's
    shortened vectors are vectors of their own (Kusupati et al., 2022, arXiv:2205.13147), hence of length 1 again.
    """

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, dimensions: torch.Tensor) -> torch.Tensor:
        """int64 [batch, length] twice, int64 [batch] -> float32 [batch, max(dimensions)]."""
        vectors = self.encoder(input_ids, attention_mask)
        size = vectors.shape[1]
        kept = torch.arange(size, device=vectors.device)[None] < dimensions[:, None]
        longest = dimensions.max().item()
        torch._check(longest >= 1)
        torch._check(longest <= size)
        vectors = torch.where(kept, vectors, 0.0)[:, :longest]
        return nn.functional.normalize(vectors, dim=-1) if self.encoder.config.l2_normalize else vectors


def write_onnx(
    encoder: Encoder,
    directory: Path,
    *,
    opset: int,
    dimensions: bool,
    translations: Mapping[Callable[..., Any], Callable[..., Any]] | None = None,
) -> Path:
    """Export ``encoder``, on the CPU and in the precision that it is in, to ``directory/model.onnx``; return that path.

    Inputs ``input_ids`` and ``attention_mask``: int64 [batch, length], both dynamic; with ``dimensions`` also that:
    int64 [batch]. Output ``embeddings``: float32 [batch, dimension], pooled and normalised as the encoder does it.
    ``translations`` say what operators of one's own become. Raises InputError when the exporter cannot express the
    model or the opset.
    """
    started = time.monotonic()
    shapes: dict[str, dict[int, str]] = dict.fromkeys(INPUTS, _AXES)
    example: tuple[torch.Tensor, ...] = encoder.batch(encoder.tokenize(_EXAMPLE, "passage"))
    model: nn.Module = encoder.eval()
    if dimensions:
        model, shapes[DIMENSIONS] = _Shortened(encoder).eval(), {0: "batch"}
        # Two different ones: equal sizes would be taken for one and the same.
        example = (*example, torch.tensor([encoder.dimension, encoder.dimension // 2]))
    table = dict(translations or {})
    if opset < _ATTENTION_OPSET:
        table[torch.ops.aten.scaled_dot_product_attention.default] = _attention
    try:
        with _quiet():
            program = torch.onnx.export(
                model,
                example,
                input_names=list(shapes),
                output_names=[OUTPUT],
                dynamic_shapes=shapes,
                opset_version=opset,
                custom_translation_table=table,
                dynamo=True,
                verbose=False,
            )
            if program is None:
                raise RuntimeError("torch.onnx.export returned no program")
            _name_output(program.model, "dimension" if dimensions else encoder.dimension)
            path = directory / MODEL_FILE
            program.save(path, external_data=_weight_bytes(encoder) > EMBEDDED_LIMIT_BYTES)
            _check(path, opset)
    except (torch.onnx.OnnxExporterError, onnx.checker.ValidationError) as error:
        raise InputError(
            f"{type(encoder.backbone).__name__} cannot be exported with opset {opset} "
            f"({str(error).strip().splitlines()[0]}): change opset, or the model"
        ) from error
    _log.info(
        "ONNX written in %.1f s: opset %d, %.0f MB", time.monotonic() - started, opset, compute_megabytes(directory)
    )
    return path


def compute_megabytes(directory: Path) -> float:
    """Size of the graph and its weights in ``directory``."""
    return round(sum(path.stat().st_size for path in directory.glob(f"{MODEL_FILE}*")) / 1e6, 1)


def _name_output(model: onnx_ir.Model, last: str | int) -> None:
    """The exporter has a name of its own for the size of shortened vectors."""
    model.graph.outputs[0].shape = onnx_ir.Shape(["batch", last])


def _check(path: Path, opset: int) -> None:
    """Check the graph by ONNX's own rules; the exporter falls back to another opset without failing."""
    onnx.checker.check_model(str(path))
    model = onnx.load(path, load_external_data=False)
    exported_opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if exported_opset != opset:
        raise InputError(
            f"opset {opset} is not possible for this model, the exporter made {exported_opset}: "
            f"set opset={exported_opset}"
        )


def _weight_bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of packages that this model does not need and of its own deprecated calls."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
