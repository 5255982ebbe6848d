"""The three targets kserve, gitops and local: each has a function `deploy`.

Imported by deploy.program only.
"""
