"""Stage eval: base against tuned model, and the quality gate.

Imports components.core, and no other stage.
"""
