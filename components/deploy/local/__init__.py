"""The service of target=local on this machine: process, state directory, `status` and `stop`.

Imports the declaration of deploy only.
"""
