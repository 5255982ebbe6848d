"""Hard negatives, and the round-trip filter.

Imports prep.read and prep.split.
"""
