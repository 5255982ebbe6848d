"""Stage prep: training data with hard negatives, and a test set.

Imports components.core, and no other stage.
"""
