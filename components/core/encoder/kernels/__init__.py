"""Operations of a layer, forward and backward, on CPU and GPU.

Imports nothing else of the encoder.
"""
