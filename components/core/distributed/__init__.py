"""Processes that work together, one per GPU.

Imports no other folder of core.
"""
