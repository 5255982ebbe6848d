"""The Kubernetes API: client, lease, releases, rollout, diagnosis.

Imports deploy.objects.
"""
