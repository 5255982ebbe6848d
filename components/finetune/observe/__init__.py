"""What a training reports while it runs: metrics, trackers, memory, preview.

Imports finetune.data.
"""
