"""Benchmarks: our path and its peers side by side, in one run on one machine."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# Peers that ask transformers for flash_attention_2 get the same kernels out of torch where flash-attn is not installed.
# Before transformers is imported: it looks for the package only once. Of flash-attn-4 comes only a namespace so called.
_found = importlib.util.find_spec("flash_attn")
if _found is None or _found.origin is None:
    sys.path.append(str(Path(__file__).parent / "flash_attn_over_torch"))
