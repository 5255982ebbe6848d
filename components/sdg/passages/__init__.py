"""Passages of documents, and the record that a document or a bundle of documents becomes.

Imports the settings and records of sdg, and sdg.read.
"""
