"""Training on several nodes: a TrainJob and its pods.

Imports the declaration of finetune only.
"""
