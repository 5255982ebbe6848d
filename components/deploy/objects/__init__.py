"""Kubernetes objects of a release, rendered from settings and bundle.

Imports deploy.backends.
"""
