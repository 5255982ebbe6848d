"""Kubeflow Pipelines as pipeline.py uses it: run form, options, commands, client of the server.

Imports recipe; imported by pipeline.py only.
"""
