"""Triton kernels for what lies between the matrix products of Llama, each in one pass over memory: GPUs only.

The functions of the same names in core.encoder.kernels say what they compute, and compute it on CPUs: ``rms_norm``,
``rotary``, ``swiglu`` and ``fp8``. Imports core.encoder.kernel_types.
"""

from components.core.encoder.gpu_kernels.quantize import quantize
from components.core.encoder.gpu_kernels.rms_norm import add_rms_norm_forward, rms_norm_backward, rms_norm_forward
from components.core.encoder.gpu_kernels.rotary import rotary_backward, rotary_forward
from components.core.encoder.gpu_kernels.swiglu import swiglu, swiglu_backward

__all__ = [
    "add_rms_norm_forward",
    "quantize",
    "rms_norm_backward",
    "rms_norm_forward",
    "rotary_backward",
    "rotary_forward",
    "swiglu",
    "swiglu_backward",
]
