"""Preloads as objects of CDI and Kubernetes."""
