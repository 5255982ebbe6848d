"""Serving images: what each takes, and whether it can serve the model.

Imports the declaration of deploy only.
"""
