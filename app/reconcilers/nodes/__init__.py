"""Keeps the rows of nodes true to the cluster."""
