"""What lies between the matrix products of Llama, in one pass over memory: GPUs only.

What the kernels compute is said, and computed for CPUs, by ``core.encoder``'s ``rms_norm``, ``rotary``, ``gate`` and
``fp8``.
"""

from components.core.encoder.gpu_kernels.gates import gate, gate_back
from components.core.encoder.gpu_kernels.norms import add_rms_norm, rms_norm, rms_norm_backward
from components.core.encoder.gpu_kernels.rotations import rotate, rotate_back
from components.core.encoder.gpu_kernels.rounding import rounded

__all__ = ["add_rms_norm", "gate", "gate_back", "rms_norm", "rms_norm_backward", "rotate", "rotate_back", "rounded"]
