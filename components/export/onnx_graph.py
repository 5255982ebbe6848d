"""The encoder as an ONNX graph: ids and mask in, finished vectors out."""

from __future__ import annotations

import contextlib
import logging
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import nn

from components.core.encoder.model import Encoder
from components.core.errors import InputError
from components.core.parity import Precision

MODEL_FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "embeddings"
# A protobuf ends at 2 GiB; beyond this the weights go to model.onnx.data, one file beside the graph.
EMBEDDED_LIMIT_BYTES = 1_500_000_000
_EXAMPLE = ("a text", "another text that is somewhat longer")
_log = logging.getLogger(__name__)


def write_onnx(encoder: Encoder, directory: Path, *, opset: int, precision: Precision) -> Path:
    """Export ``encoder`` (on the CPU, fp32) to ``directory/model.onnx`` and return that path.

    Inputs ``input_ids`` and ``attention_mask``: int64 [batch, length], both dynamic. Output ``embeddings``: float32
    [batch, dimension], pooled and normalised as the encoder does it. With ``fp16`` the encoder is converted in place.
    Raises InputError when the exporter cannot express the model or the opset.
    """
    started = time.monotonic()
    if precision == "fp16":
        encoder.half()
    axes = {0: "batch", 1: "length"}
    example = encoder.batch(encoder.tokenize(_EXAMPLE, "passage"))
    try:
        with _quiet():
            program = torch.onnx.export(
                encoder.eval(),
                example,
                input_names=list(INPUTS),
                output_names=[OUTPUT],
                dynamic_shapes=dict.fromkeys(INPUTS, axes),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
            path = directory / MODEL_FILE
            program.save(path, external_data=_weight_bytes(encoder) > EMBEDDED_LIMIT_BYTES)
            _check(path, opset)
    except (torch.onnx.OnnxExporterError, onnx.checker.ValidationError) as error:
        raise InputError(
            f"{type(encoder.backbone).__name__} cannot be exported with opset {opset} "
            f"({str(error).strip().splitlines()[0]}): change opset, or the model"
        ) from error
    _log.info("ONNX written in %.1f s: opset %d, %s", time.monotonic() - started, opset, precision)
    return path


def _check(path: Path, opset: int) -> None:
    """Check the graph by ONNX's own rules; the exporter falls back to another opset without failing."""
    onnx.checker.check_model(str(path))
    model = onnx.load(path, load_external_data=False)
    found = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    if found != opset:
        raise InputError(f"opset {opset} is not possible for this model, the exporter made {found}: set opset={found}")


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
