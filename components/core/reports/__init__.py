"""HTML pages and SVG charts of the reports.

Imports nothing else of the project.
"""
