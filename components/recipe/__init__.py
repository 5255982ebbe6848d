"""The recipe as data: the six stages in order, the profiles, and the plan of a run.

Imports the declarations of the stages only.
"""
