"""Nodes, and what they run: pods and images."""
