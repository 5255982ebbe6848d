"""Groups of the settings of sdg.

Imports core.settings only.
"""
