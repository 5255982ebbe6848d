"""The embedding model as mining, training, evaluation, export and serving see it."""
