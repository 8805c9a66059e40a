"""Imports and pulls preloads, and removes those that nobody uses."""
