"""Preloads over HTTP."""
