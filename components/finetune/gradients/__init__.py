"""The gradient of one optimizer step: packed, padded or sharded.

Imports finetune.data.
"""
