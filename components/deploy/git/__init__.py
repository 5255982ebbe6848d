"""The objects as files in a Git repository, and whether Argo CD or Flux applied them.

Imports deploy.kubernetes and deploy.objects.
"""
