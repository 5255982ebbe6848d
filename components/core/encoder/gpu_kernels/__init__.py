"""What lies between the matrix products of Llama, in one pass over memory: GPUs only.

What the kernels compute is said, and computed for CPUs, by ``core.encoder.kernels``: ``rms_norm``, ``rotary``,
``swiglu`` and ``fp8``.
"""

from components.core.encoder.gpu_kernels.quantize import rounded
from components.core.encoder.gpu_kernels.rms_norm import add_rms_norm, rms_norm, rms_norm_backward
from components.core.encoder.gpu_kernels.rotary import rotate, rotate_back
from components.core.encoder.gpu_kernels.swiglu import gate, gate_back

__all__ = ["add_rms_norm", "gate", "gate_back", "rms_norm", "rms_norm_backward", "rotate", "rotate_back", "rounded"]
