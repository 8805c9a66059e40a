"""Brings preloads about."""
