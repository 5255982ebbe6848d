"""Test sets, search, and vectors of many texts.

Imports core.encoder, core.distributed and core.store.
"""
