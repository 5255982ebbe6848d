"""Training on several nodes: a TrainJob, its pods, and the files that both sides exchange.

Imports core.kubernetes and the declaration of finetune.
"""
