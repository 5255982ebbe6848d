"""Where the time of our training step goes: ``python -m benchmarks.kernels [--tiny] [--json FILE] [--only NAMES]``.

The step is that of ``benchmarks.finetune``, in bfloat16 and with products in 8 bits. Kernels by the time they take, and
how long the GPU waits for the host. On a CPU torch's operations stand in for kernels.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from benchmarks import report
from benchmarks.batch import make_batch
from benchmarks.steps import Step, ours
from benchmarks.workload import LLAMA_1B, TINY

CONTESTANTS = {"ours, bf16": False, "ours, fp8": True}
_STEPS, _LISTED, _NAME = 2, 25, 100


def main() -> None:
    args = report.arguments("Where the time of our training step goes.")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    shape, size = (TINY, 8) if args.tiny else (LLAMA_1B, 128)
    batch = make_batch(shape, size, distinct=True)
    rows: list[dict[str, Any]] = []
    for name in report.chosen(CONTESTANTS, args.only):
        report.forget()
        with ours(shape, device, batch, fp8=CONTESTANTS[name]) as step:
            found, wall, idle = _profiled(step, device)
        print(f"{name}: {wall:.1f} ms a step by the clock; the GPU waits {idle:.1f} ms of it")
        rows += [{"contestant": name, **row, "share of the step": round(row["ms a step"] / wall, 3)} for row in found]
    report.publish("Kernels of a training step", rows, args)


def _profiled(step: Step, device: torch.device) -> tuple[list[dict[str, Any]], float, float]:
    """Kernels by time, milliseconds a step by the clock, and those in which no kernel ran."""
    for _ in range(3):
        step()
    report.synchronize()
    on_gpu = device.type == "cuda"
    kind = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[kind]) as profiled:
        started = time.perf_counter()
        for _ in range(_STEPS):
            step()
        report.synchronize()
        wall = (time.perf_counter() - started) * 1e3 / _STEPS
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    events = [event for event in profiled.events() if event.device_type == wanted and not event.is_user_annotation]
    busy = _covered((event.time_range.start, event.time_range.end) for event in events) / 1e3 / _STEPS
    taken: dict[str, list[float]] = {}
    for event in events:
        own = event.time_range.elapsed_us() if on_gpu else event.self_cpu_time_total
        taken.setdefault(event.name[:_NAME], []).append(own)
    rows = [
        {"kernel": name, "ms a step": round(sum(times) / 1e3 / _STEPS, 2), "calls a step": len(times) / _STEPS}
        for name, times in sorted(taken.items(), key=lambda item: -sum(item[1]))[:_LISTED]
    ]
    return [row for row in rows if row["ms a step"] > 0], wall, max(0.0, wall - busy)


def _covered(spans: Iterable[tuple[float, float]]) -> float:
    """How long at least one of ``spans``, each from start to end, lasts."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


if __name__ == "__main__":
    main()
