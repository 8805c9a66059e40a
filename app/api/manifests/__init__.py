"""Kubernetes-style manifests over HTTP."""
