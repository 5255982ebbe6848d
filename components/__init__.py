"""Fine-tuning an embedding model on a corpus of one's own, stage by stage."""

__version__ = "0.1.0"
