"""Every kind of input that prep takes, as records.

Imports the declaration of prep only.
"""
