"""Files written from the declarations: README tables, metadata.yaml, the schema of the chart.

Imports recipe.
"""
