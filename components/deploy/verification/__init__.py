"""Checks that an endpoint serves the exported model.

Imports deploy.publishing.
"""
