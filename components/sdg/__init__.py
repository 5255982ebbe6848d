"""Stage sdg: questions and answers from documents.

Imports components.core, and no other stage.
"""
