"""Nodes over HTTP."""
