"""Where the kernels for GPUs are found."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType


@functools.cache
def kernels() -> ModuleType:
    """``core.encoder.gpu_kernels``, imported where a GPU is: Triton, which it needs, comes with torch for GPUs only."""
    return importlib.import_module("components.core.encoder.gpu_kernels")
