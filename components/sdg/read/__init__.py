"""Documents in, passages out: sources, formats, chunking.

Imports the declaration of sdg only.
"""
