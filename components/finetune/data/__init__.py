"""Training data, tokenized texts and batches.

Imports no other folder of finetune.
"""
