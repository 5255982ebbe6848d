"""Questions to a language model: client, ledger, budget, prompts, roles.

Imports sdg.passages.
"""
