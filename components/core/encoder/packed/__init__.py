"""The encoder over packed texts, without padding: BERT, Llama and Ministral.

Imports core.encoder.kernels.
"""
