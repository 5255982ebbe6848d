"""Training, validation and test sets without a text in two of them.

Imports prep.read.
"""
