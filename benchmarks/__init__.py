"""Benchmarks: our path and its peers side by side, in one run on one machine."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# Peers that ask transformers for flash_attention_2 get the same kernels out of torch where flash-attn is not installed.
# Before transformers is imported: it looks for the package only once.
if importlib.util.find_spec("flash_attn") is None:
    sys.path.append(str(Path(__file__).parent / "flash_attn_over_torch"))
