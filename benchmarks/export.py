"""ONNX beside PyTorch: ``python -m benchmarks.export [--tiny] [--json FILE]``.

A bidirectional Llama of the 1B shape with random weights is written by export's own code: seconds, size, parity with
PyTorch in float32, and the latency of one call at the three shapes that export measures.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from benchmarks.workload import LLAMA_1B, TINY, passages, write_base
from components.core.encoder.checkpoint import default_device, load_checkpoint
from components.core.encoder.model import Encoder
from components.core.serving.vector_limits import compare_vectors
from components.export.mixed_precision import convert_to_half
from components.export.onnx_graph import compute_megabytes, write_onnx
from components.export.sessions import SHAPES, OnnxSession, Session, TorchSession, measure_latency

_TEXTS = 32
_TOKEN = 7


def main() -> None:
    args = report.arguments("Export to ONNX: seconds, size, parity and latency beside PyTorch.")
    shape = TINY if args.tiny else LLAMA_1B
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory) / "base"
        write_base(shape, base)
        ids = [text[: shape.longest] for text in passages(shape, _TEXTS)]
        expected = _vectors(TorchSession(_load(base, torch.float32)), ids)
        rows = [row for row in _rows(base, Path(directory), ids, expected, shape.longest) if args.only in row["form"]]
    report.publish("Export of the 1B shape", rows, args)


def _rows(base: Path, work: Path, ids: list[list[int]], expected: np.ndarray, longest: int) -> Iterator[dict[str, Any]]:
    for dtype in (torch.float32, torch.bfloat16):
        encoder = _load(base, dtype)
        name = str(dtype).removeprefix("torch.")
        yield _row(f"PyTorch {name}, eager", TorchSession(encoder), ids, expected, longest)
        encoder.forward = torch.compile(encoder.forward, dynamic=False)  # type: ignore[method-assign]
        yield _row(f"PyTorch {name}, compiled", TorchSession(encoder), [], expected, longest)
    for precision in ("fp32", "fp16"):
        report.forget()
        encoder = _load(base, torch.float32).cpu()
        if precision == "fp16":
            convert_to_half(encoder.backbone, norms_in_fp32=True, patterns=[])
        folder = work / precision
        folder.mkdir()
        started = time.perf_counter()
        graph = write_onnx(encoder, folder, opset=20, dimensions=True)
        facts = {"export s": round(time.perf_counter() - started, 1), "GB": round(compute_megabytes(folder) / 1000, 2)}
        session = OnnxSession(graph, encoder.dimension)
        yield _row(f"ONNX {precision}, {session.name}", session, ids, expected, longest) | facts
        for path in folder.iterdir():
            path.unlink()


def _row(form: str, session: Session, ids: list[list[int]], expected: np.ndarray, longest: int) -> dict[str, Any]:
    """``ids`` may be empty: a compiled model is compiled anew for every new shape."""
    closeness = compare_vectors(_vectors(session, ids), expected) if ids else None
    speeds = {(speed.batch, speed.length): speed.milliseconds for speed in measure_latency(session, longest, _TOKEN)}
    row = {
        "form": form,
        **{f"{batch} x {length} ms": speeds.get((batch, min(length, longest))) for batch, length in SHAPES},
        "mean cosine": closeness and round(closeness.mean, 6),
        "least cosine": closeness and round(closeness.minimum, 6),
        "export s": None,
        "GB": None,
    }
    print(row, flush=True)
    return row


def _vectors(session: Session, ids: list[list[int]]) -> np.ndarray:
    """Four texts of like length at a time."""
    order = sorted(range(len(ids)), key=lambda row: len(ids[row]))
    vectors: dict[int, np.ndarray] = {}
    for start in range(0, len(order), 4):
        rows = order[start : start + 4]
        longest = max(len(ids[row]) for row in rows)
        padded, mask = np.zeros((2, len(rows), longest), dtype=np.int64)
        for place, row in enumerate(rows):
            padded[place, : len(ids[row])], mask[place, : len(ids[row])] = ids[row], 1
        vectors |= dict(zip(rows, session.embed(padded, mask), strict=True))
    return np.stack([vectors[row] for row in range(len(ids))])


def _load(base: Path, dtype: torch.dtype) -> Encoder:
    report.forget()
    return load_checkpoint(base, device=default_device(), dtype=dtype)


if __name__ == "__main__":
    main()
