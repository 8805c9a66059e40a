"""Implements the compute layer for KubeVirt. Nothing else in the service knows Kubernetes."""
