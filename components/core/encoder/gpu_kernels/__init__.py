"""What lies between the matrix products of Llama, in one pass over memory: GPUs only.

What the kernels compute is said, and computed for CPUs, by ``core.encoder.kernels``: ``rms_norm``, ``rotary``,
``swiglu`` and ``fp8``.
"""
