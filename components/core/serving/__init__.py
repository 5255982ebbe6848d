"""What export, deploy and servers agree on: bundle, model manifest, client of an endpoint.

Imports core.encoder.config.
"""
