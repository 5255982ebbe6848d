"""The Kubernetes API as the stages use it: one client, its errors, and the security that pods are given.

Imports core.errors and core.retry. Only ``client`` and ``connection`` need the package kubernetes.
"""
