"""Stage finetune: contrastive training.

Imports components.core, and no other stage.
"""
