"""Formats and clients that export, deploy and servers share: bundle, model manifest, embedding client.

Imports core.encoder.config.
"""
