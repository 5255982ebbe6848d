"""Stage deploy: the exported model served and verified.

Imports components.core, and no other stage.
"""
