"""The backward pass of a contrastive loss through the packed encoder.

Imports core.encoder.packed.
"""
