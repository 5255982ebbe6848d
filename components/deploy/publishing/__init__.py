"""Copies of the model where the cluster reads them.

Imports deploy.backends.
"""
