"""Saved states of a training, and how a stopped one goes on.

Imports finetune.data and finetune.gradients.
"""
