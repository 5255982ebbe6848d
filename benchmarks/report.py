"""Timing, and results as a Markdown table and JSON."""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "transformers", "sentence-transformers", "liger-kernel", "flash-attn-4")


def arguments(description: str) -> argparse.Namespace:
    """``--tiny``, ``--json FILE``, ``--only NAMES`` as ``chosen`` reads it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to see that everything runs; no figures")
    parser.add_argument("--json", type=Path, help="write all results to this file")
    parser.add_argument(
        "--only", default="", help="run only these contestants: names, or words in them, separated by |"
    )
    return parser.parse_args()


def chosen(names: Iterable[str], only: str) -> list[str]:
    """Those of ``names`` that ``only`` names, parts separated by |: a name itself, else all that hold the part.

    Exits when there is none.
    """
    known = list(names)
    parts = only.split("|")
    found = [name for name in known if any(part == name or (part not in known and part in name) for part in parts)]
    if not found:
        sys.exit(f"--only {only}: there is no such contestant: {'; '.join(known)}")
    return found


def synchronize() -> None:
    """Wait for the GPU, when there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(work: Callable[[], Any], repeats: int) -> tuple[float, list[float]]:
    """Fewest seconds that ``work`` took, and those of every repeat."""
    taken: list[float] = []
    for _ in range(repeats):
        synchronize()
        start = time.perf_counter()
        work()
        synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken), taken


def kernel_seconds(work: Callable[[], Any]) -> float | None:
    """Seconds that the GPU's kernels took of ``work``: what a faster host could not shorten. None on a CPU."""
    if not torch.cuda.is_available():
        return None
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        synchronize()
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6


def forget() -> None:
    """Give memory back before the next contestant and start measuring its peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_gb() -> float | None:
    """Most memory taken on the GPU since ``forget``, in GB."""
    return round(torch.cuda.max_memory_allocated() / 1e9, 1) if torch.cuda.is_available() else None


def publish(title: str, rows: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """Print ``rows`` as a Markdown table with chip, versions and date; write them as JSON when asked."""
    chip = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = {name: version(name) for name in _PACKAGES}
    facts = f"{chip}, {', '.join(f'{name} {found}' for name, found in versions.items())}, {datetime.date.today()}"
    columns = list(rows[0])
    print(f"\n### {title}\n\n{facts}{' (TINY: no figures to quote)' if args.tiny else ''}\n")
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join("" if row.get(name) is None else str(row[name]) for name in columns) + " |")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(
            json.dumps({"title": title, "facts": facts, "tiny": args.tiny, "rows": rows}, indent=2) + "\n"
        )


def version(package: str) -> str:
    """Its version, or that it is missing."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
