"""Import of the kernels for GPUs."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType


@functools.cache
def load_gpu_kernels() -> ModuleType:
    """Return ``core.encoder.gpu_kernels``, imported on first use: it needs Triton, which only torch for GPUs brings."""
    return importlib.import_module("components.core.encoder.gpu_kernels")
