"""Operations of a layer, forward and backward, on CPU and GPU.

Imports core.encoder.kernel_types, and core.encoder.gpu_kernels where a GPU is.
"""
