"""Groups of the settings of deploy.

Imports core.settings only.
"""
