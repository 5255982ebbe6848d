"""The forms of the model that servers take, each proven: ONNX, and a TensorRT plan when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from components.core.encoder.config import Kind
from components.core.encoder.model import Encoder
from components.core.serving.bundle import Probe
from components.core.serving.model_manifest import ONNX_FOLDER, TENSORRT_FOLDER, LatencyMeasurement
from components.core.serving.vector_limits import CosineSummary, Precision, choose_limits
from components.export.component import ExportConfig
from components.export.mixed_precision import convert_to_half
from components.export.onnx_graph import compute_megabytes, write_onnx
from components.export.onnx_int8 import quantize_weights
from components.export.quantization import TRANSLATIONS, choose_calibration_texts, load_modelopt, quantize
from components.export.retrieval_parity import RetrievalParity, SearchSample, measure_retrieval, sample_search
from components.export.sessions import Latency, OnnxSession, Session, TorchSession, measure_latency
from components.export.tensorrt_plan import PLAN_FILE, PlanSession, build_plan, load_tensorrt
from components.export.vector_parity import VectorParity, embed_texts, measure_vectors

TOKENIZER_FOLDER = "tokenizer"
Vectors = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class References:
    """Probes with the checkpoint's vectors, float32 [probes, dimension], and how close half precision comes to them."""

    probes: list[Probe]
    tuned: np.ndarray
    noise: CosineSummary


@dataclass(frozen=True)
class FormatReport:
    """What one form of the model showed."""

    form: str
    runs_on: str
    parity: VectorParity
    retrieval: RetrievalParity | None
    speeds: list[Latency]

    @property
    def measured(self) -> list[LatencyMeasurement]:
        return _measured(self.form, self.runs_on, self.speeds)


def require_packages(config: ExportConfig) -> None:
    """Before anything has cost time. Raises ActionNeeded for a package that a setting needs and that is missing."""
    if config.export_to_trt:
        load_tensorrt()
    if config.quant_cfg in ("fp8", "int8_sq"):
        load_modelopt()


def write_formats(
    config: ExportConfig, encoder: Encoder, proof: References, eval_data: Path | None, exported_model: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Write ``onnx/`` and ``tensorrt/`` of ``encoder``, which is changed on the way.

    Returns what the manifest says of them, and figures. Raises InputError when a form does not give the checkpoint's
    vectors or does not find its passages, ActionNeeded for a package that is not installed.
    """
    trt = load_tensorrt() if config.export_to_trt else None
    checker = _FormatChecker(config, encoder, proof, sample_search(config, eval_data))
    folder = exported_model / ONNX_FOLDER
    graph = _write_graph(config, encoder, checker, eval_data, folder)
    onnx = checker.check(f"onnx {checker.precision}", OnnxSession(graph, encoder.dimension))
    facts: dict[str, Any] = {
        "model_format": "onnx",
        "precision": checker.precision,
        "opset": config.opset,
        "onnxruntime": onnxruntime.__version__,
        "dimensions_input": config.use_dimension_arg,
        "parity": onnx.parity.figures(),
        "retrieval": onnx.retrieval.figures() if onnx.retrieval else {},
        "performance": [*checker.reference, *onnx.measured],
    }
    figures = {
        "parity_mean_cosine": onnx.parity.closeness.mean,
        "parity_min_cosine": onnx.parity.closeness.minimum,
        **({"parity_overlap_at_10": onnx.retrieval.overlap} if onnx.retrieval else {}),
        "onnx_megabytes": compute_megabytes(folder),
    }
    if trt is not None:
        plan = exported_model / TENSORRT_FOLDER
        facts["plan"] = build_plan(trt, graph, plan, config, checker.longest)
        session = PlanSession(trt, plan / PLAN_FILE, facts["plan"], encoder.dimension)
        built = checker.check(f"tensorrt {checker.precision}", session)
        encoder.tokenizer.save_pretrained(plan / TOKENIZER_FOLDER)
        facts |= {"plan_parity": built.parity.figures(), "performance": facts["performance"] + built.measured}
        figures["tensorrt_megabytes"] = round((plan / PLAN_FILE).stat().st_size / 1e6, 1)
    return facts, figures | _latencies(facts["performance"])


def _write_graph(
    config: ExportConfig, encoder: Encoder, checker: _FormatChecker, eval_data: Path | None, folder: Path
) -> Path:
    """``folder/model.onnx`` with the tokenizer beside it, in the precision that is asked for."""
    if config.quant_cfg in ("fp8", "int8_sq"):
        texts = choose_calibration_texts(config, eval_data, checker.asked)
        quantize(encoder, config.quant_cfg, texts, config.calibration_batch_size)
    encoder.cpu()
    if config.export_dtype == "fp16":
        convert_to_half(
            encoder.backbone,
            norms_in_fp32=config.override_layernorm_precision_to_fp32,
            patterns=config.override_layers_to_fp32,
        )
    folder.mkdir()
    graph = write_onnx(
        encoder, folder, opset=config.opset, dimensions=config.use_dimension_arg, translations=TRANSLATIONS
    )
    if config.quant_cfg == "int8":
        quantize_weights(folder)
    encoder.tokenizer.save_pretrained(folder / TOKENIZER_FOLDER)
    return graph


class _FormatChecker:
    """Compares each form of the model with the checkpoint, whose answers it takes while it is still whole."""

    def __init__(self, config: ExportConfig, encoder: Encoder, proof: References, sample: SearchSample | None) -> None:
        self.config, self.encoder, self.proof, self.sample = config, encoder, proof, sample
        self.precision: Precision = config.quant_cfg or config.export_dtype
        self.limits = choose_limits(self.precision, proof.noise)
        self.longest = max(encoder.config.query_max_length, encoder.config.passage_max_length)
        self._token = encoder.tokenize(["word"], "passage")[0][-1]
        checkpoint = TorchSession(encoder)
        self._expected = self._search(checkpoint)
        self.reference = _measured(
            "pytorch fp32", checkpoint.name, measure_latency(checkpoint, self.longest, self._token)
        )

    @property
    def asked(self) -> list[str]:
        """Probes and queries that the forms will be judged by; nothing may be fitted to them."""
        return [*(probe.text for probe in self.proof.probes), *(self.sample.queries if self.sample else [])]

    def check(self, form: str, session: Session) -> FormatReport:
        """Raises InputError when the form behind ``session`` is not the checkpoint within the limits."""
        parity = measure_vectors(
            session, self.encoder, self.proof.probes, self.proof.tuned, self.config, self.precision
        )
        parity.require(self.limits)
        retrieval = None
        exported_vectors = self._search(session)
        if self.sample and self._expected and exported_vectors:
            retrieval = measure_retrieval(self.sample, self._expected, exported_vectors)
            retrieval.require(self.limits)
        speeds = measure_latency(session, self.longest, self._token)
        return FormatReport(form, session.name, parity, retrieval, speeds)

    def _search(self, session: Session) -> Vectors | None:
        """Vectors of the sample's queries and passages."""
        if self.sample is None:
            return None
        tokens = self.config.encode_batch_tokens
        groups: tuple[tuple[list[str], Kind], ...] = (
            (self.sample.queries, "query"),
            (self.sample.passages, "passage"),
        )
        queries, passages = (
            embed_texts(session, self.encoder, texts, kind, tokens, f"{kind} sample by {session.name}")
            for texts, kind in groups
        )
        return queries, passages


def _measured(form: str, runs_on: str, speeds: list[Latency]) -> list[LatencyMeasurement]:
    return [
        LatencyMeasurement(
            form=form,
            runs_on=runs_on,
            batch=speed.batch,
            length=speed.length,
            milliseconds=speed.milliseconds,
            tokens_per_second=speed.tokens_per_second,
        )
        for speed in speeds
    ]


def _latencies(rows: list[LatencyMeasurement]) -> dict[str, float]:
    """Of each form, as figures: ``onnx_latency_16x128_ms``."""
    return {f"{row.form.split()[0]}_latency_{row.batch}x{row.length}_ms": row.milliseconds for row in rows}
